"""What every test gets: where the data are, NaN-filled fresh memory, markers, and fixtures that say why they skip."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
if SHARED_DATA.is_dir():
    os.environ.setdefault("METAFAST_DATA", str(SHARED_DATA))
# Deterministic mode, which fills fresh memory, asks cuBLAS for this.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

torch.set_num_threads(1)  # small tensors: a pool only waits for itself. Tests of threads set their own number.

# No deadline: shared machines pause. Derandomized: a red run is red again on the next machine.
settings.register_profile("metafast", deadline=None, derandomize=True, print_blob=True, max_examples=50)
settings.load_profile("metafast")


def pytest_configure(config: pytest.Config) -> None:
    from metafast.ops._native import LIBRARIES

    if not LIBRARIES["cpu"].loaded:
        # Without a compiler the references are what is tested; tests/test_install.py has the warning's own test.
        config.addinivalue_line("filterwarnings", "ignore:metafast runs its slow PyTorch reference:RuntimeWarning")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, whatever a test before has left; that number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def nan_filled_empty() -> Iterator[None]:
    """`torch.empty` returns NaN (the largest value for integers), so a kernel that reads what it never wrote shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """`data_folder("mnist")` is its folder under METAFAST_DATA; the test skips where it is absent."""

    def folder(name: str) -> Path:
        root = os.environ.get("METAFAST_DATA")
        if not root:
            pytest.skip("METAFAST_DATA is not set")
        path = Path(root) / name
        if not path.is_dir():
            pytest.skip(f"METAFAST_DATA has no {name!r}")
        return path

    return folder
