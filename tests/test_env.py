"""`metafast env` and the machine information beneath it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metafast import _build, ops
from metafast.cli import COMMANDS, build_app

ROOT = Path(__file__).resolve().parents[1]


def invoke(*arguments):
    result = CliRunner().invoke(build_app(arguments[0]), list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_text_names_what_serves_each_op():
    text = invoke("env")
    for row in ops.backend_report():
        assert row["op"] in text
    assert _build.machine_info()["cpu_level"] in text
    assert "METAFAST_DATA" in text


def test_json_and_output_agree(tmp_path):
    printed = json.loads(invoke("env", "--json"))
    target = tmp_path / "deep" / "env.json"
    invoke("env", "--output", str(target))
    written = json.loads(target.read_text())
    assert printed == written
    assert set(written) == {"versions", "native", "machine", "devices", "backends", "variables"}
    assert {row["op"] for row in written["backends"]} == set(ops.REGISTRY)


def test_python_finds_what_the_native_module_finds():
    if _build.MISSING is not None:
        pytest.skip(f"no native build: {_build.MISSING}")
    native, python = _build.machine_info(), _build._python_machine_info()
    assert native == python


def test_native_build_knows_its_commit_and_version():
    info = _build.build_info()
    if info is None:
        pytest.skip(f"no native build: {_build.MISSING}")
    assert f'version = "{info["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert info["torch_target"] == "0x020b000000000000"
    assert "-ffast-math" not in info["kernel_flags"]
    assert "native" not in info["kernel_flags"]


def test_without_the_native_module():
    code = (
        "import sys; sys.modules['metafast._host'] = None; from metafast import _build;"
        "print(_build.build_info(), _build.machine_info())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.startswith("None {'cpu'")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    assert "Usage" in invoke(name, "--help")


def test_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "metafast", "env", "--json"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["versions"]["python"]


def test_unknown_command_is_an_error():
    result = CliRunner().invoke(build_app("nothing"), ["nothing"])
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_every_environment_variable_is_documented():
    sources = [ROOT / "setup.py", *(ROOT / "metafast").rglob("*.py"), *(ROOT / "csrc").rglob("*.*")]
    used = {name for path in sources for name in re.findall(r"\bMETAFAST_[A-Z_]+\b", path.read_text(errors="ignore"))}
    documented = set(re.findall(r"^\| `(METAFAST_[A-Z_]+)`", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE))
    assert used == documented
    assert len(documented) <= 5
