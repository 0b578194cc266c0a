"""Every example that a reader can copy runs: docstrings of the package, and Python blocks of the documentation."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import metafast

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(metafast.__path__, "metafast.")
    if not info.name.endswith(("__main__", "._host"))
)
OPTIONAL = set("triton matplotlib datasets sklearn PIL transformers accelerate torchmetrics optuna ray".split())


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {error.name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.stem)
def test_page_examples(page, tmp_path, monkeypatch):
    """The Python blocks of a page run top to bottom, in one namespace."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    namespace = {"__name__": "__main__"}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)
