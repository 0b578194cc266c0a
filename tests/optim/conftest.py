"""The optimizer tests hold with and without the native library; without it the reference says so by a warning."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:metafast runs its slow PyTorch reference:RuntimeWarning")


@pytest.fixture(autouse=True)
def small_tensors(one_thread: None) -> None:
    """A second thread would only wait for the first one."""
