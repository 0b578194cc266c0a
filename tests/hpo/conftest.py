import pytest


@pytest.fixture(autouse=True)
def _quiet_optuna():
    """Optuna reports each trial otherwise."""
    try:
        from optuna import logging
    except ImportError:
        yield
        return
    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    yield
    logging.set_verbosity(level)
