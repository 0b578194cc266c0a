"""`pytest benchmarks`: what the suites share. Timing fixtures come from pytest-benchmark."""

from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-threads", type=int, default=1, help="threads of PyTorch's pool (default 1)")


@pytest.fixture(scope="session", autouse=True)
def bench_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--bench-threads"))
    yield torch.get_num_threads()
    torch.set_num_threads(before)
