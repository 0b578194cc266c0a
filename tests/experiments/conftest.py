import pytest

from tests.experiments.online_tuning_cases import make_data, use


@pytest.fixture(scope="session")
def made_data(tmp_path_factory):
    """Small data sets of the forms that the experiments read."""
    pytest.importorskip("datasets", reason="the datasets package is not installed")
    pytest.importorskip("PIL", reason="pillow is not installed")
    pytest.importorskip("transformers", reason="the transformers package is not installed")
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture
def data(made_data, monkeypatch):
    """METAFAST_DATA with those alone."""
    use(monkeypatch, made_data)
    return made_data
