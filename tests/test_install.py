"""The package as a user gets it: a wheel, an install without a compiler, and what importing costs."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILERS = ("c++", "g++", "clang++")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(c) for c in [os.environ.get("CXX") or "", *COMPILERS]), reason="needs a C++ compiler"
)


def run(command, *, cwd, check=True, env=None):
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if check:
        assert done.returncode == 0, done.stdout
    return done


def python(code, *, env=None, cwd, check=True):
    return run([sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, env=env, check=check)


def environment(**variables):
    """This process's environment without what would reach into the build, and with `variables`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("METAFAST_", "PYTHON", "CXX", "CC", "CMAKE"))}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The tree without what was built in it."""
    target = tmp_path_factory.mktemp("source") / "metafast"
    names = ["csrc", "metafast", "requirements", "tests/cpp", "CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md",
             "pyproject.toml", "setup.py"]  # fmt: skip
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "lib", "__pycache__"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def install(source, target, **variables):
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-v",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        target,
        ".",
    ]
    return run(command, cwd=source, env=environment(**variables), check=False)


FIRST_STEP = """
    import json, sys, warnings
    # The import hook of an editable install would lend its native module to the package under test.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    import torch
    from metafast.optim import AdamW
    w = torch.nn.Parameter(torch.ones(10))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for opt in (AdamW([w], lr=0.1), AdamW([w], lr=0.1)):
            for _ in range(2):
                w.grad = torch.ones(10)
                opt.step()
    from metafast.cli.env import environment
    facts = environment()
    cpu = sorted({row["backend"] for row in facts["backends"] if row["device"] == "cpu"})
    import metafast
    print(json.dumps({"warnings": [str(c.message) for c in caught], "w": w.tolist(), "cpu": cpu,
                      "native": facts["native"], "file": metafast.__file__}))
"""


def first_step(target):
    done = python(FIRST_STEP, env=environment(PYTHONPATH=str(target)), cwd=target)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["file"].startswith(str(target))
    assert facts["w"][0] < 0.7  # four steps of lr 0.1
    return facts


@needs_compiler
@pytest.mark.slow
def test_wheel(source, tmp_path):
    build = run(
        [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, "."],
        cwd=source,
        env=environment(METAFAST_CUDA="0", METAFAST_REQUIRE_NATIVE="1"),
    )
    (wheel,) = tmp_path.glob("metafast-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "metafast/lib/libmetafast_cpu.so" in names, build.stdout
    assert any(name.startswith("metafast/_host.") for name in names)
    assert "metafast/py.typed" in names
    assert not [name for name in names if not name.startswith(("metafast/", "metafast-"))]

    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    facts = first_step(tmp_path / "site")
    assert facts["cpu"] == ["cpu"]
    assert facts["warnings"] == []
    assert {"metafast_cpu", "_host"} <= set(facts["native"]["targets"])


@pytest.mark.slow
def test_no_compiler(source, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    done = install(source, tmp_path / "site", PATH=str(empty))
    assert done.returncode == 0, done.stdout
    assert "NO NATIVE CODE IN THIS BUILD" in done.stdout
    assert "no C++ compiler found" in done.stdout

    facts = first_step(tmp_path / "site")
    assert facts["cpu"] == ["reference"]
    assert "missing" in facts["native"]
    (warning,) = facts["warnings"]
    assert "pip install" in warning
    assert "compiler" in warning


def test_no_compiler_is_an_error_where_native_code_is_required(source, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    done = install(source, tmp_path / "site", PATH=str(empty), METAFAST_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "no C++ compiler found" in done.stdout


@needs_compiler
def test_broken_native_code_is_loud_and_installs(source, tmp_path):
    copy = tmp_path / "metafast"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for unit in (copy / "csrc").rglob("*.cpp"):
        unit.write_text('#error "broken on purpose"\n')
    done = install(copy, tmp_path / "site", METAFAST_CUDA="0")
    assert done.returncode == 0, done.stdout
    assert "broken on purpose" in done.stdout
    assert "NO NATIVE CODE IN THIS BUILD" in done.stdout
    assert not list((tmp_path / "site").rglob("*.so"))


def test_bad_switch_is_named(source, tmp_path):
    done = install(source, tmp_path / "site", METAFAST_CUDA="yes")
    assert done.returncode != 0
    assert "METAFAST_CUDA must be 0 or 1, got 'yes'" in done.stdout


@needs_compiler
def test_isolated_build_asks_for_torch_only_where_there_is_none(source, tmp_path):
    """An isolated build cannot import torch, but finds its headers on disk: nothing heavy is downloaded."""
    import setuptools

    tools = tmp_path / "tools"
    tools.mkdir()
    site = Path(setuptools.__file__).parents[1]
    for path in [*site.glob("setuptools*"), *site.glob("_distutils_hack"), *site.glob("pkg_resources")]:
        (tools / path.name).symlink_to(path)
    # What pip's isolation does: the interpreter keeps its prefix, and loses its site-packages.
    hide = "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('site-packages')]"
    (tools / "sitecustomize.py").write_text(hide)
    ask = "from setuptools import build_meta; print(build_meta.get_requires_for_build_wheel())"
    env = environment(PYTHONPATH=str(tools))

    def requirements(interpreter):
        return run([interpreter, "-c", ask], cwd=source, env=env).stdout.splitlines()[-1]

    assert "torch" not in requirements(sys.executable)

    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], cwd=tmp_path)
    assert "torch==" in requirements(tmp_path / "bare" / "bin" / "python")


def test_help_does_not_wait_for_torch():
    code = """
        import sys
        from metafast.cli import main
        try:
            main(["--help"])
        except SystemExit:
            pass
        print("torch" in sys.modules)
    """
    assert python(code, cwd=ROOT).stdout.splitlines()[-1] == "False"


def test_import_is_cheap():
    """What metafast adds to torch with one optimizer made, which loads the same parts of torch."""
    code = """
        import time
        start = time.perf_counter()
        import torch
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
        middle = time.perf_counter()
        import metafast.optim
        end = time.perf_counter()
        print(end - middle, middle - start)
    """
    best = min(float(a) / float(b) for a, b in (python(code, cwd=ROOT).stdout.split() for _ in range(2)))
    assert best < 0.2
