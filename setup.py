"""Drives CMake with ninja; the list of native targets is CMakeLists.txt.

Without a compiler, or when the native build fails, the install goes on in pure Python (the references run) and the
build log says so. METAFAST_REQUIRE_NATIVE=1 turns both into errors; METAFAST_CUDA=0 leaves the CUDA library out.
"""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)


def flag(name, default):
    value = os.environ.get(name, "").strip().lower()
    if value not in {"", "0", "1"}:
        raise SystemExit(f"{name} must be 0 or 1, got {value!r}")
    return default if value == "" else value == "1"


def find_torch():
    """Folder of the torch package whose headers serve the build, or None.

    An isolated build hides the target environment from `import`, but not its folder on disk, so nothing has to be
    downloaded for its headers: the op libraries use torch's stable ABI and fit every later torch as well.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    sites = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    for folder in [*folders, *(Path(s) / "torch" for s in sites)]:
        version = folder / "version.py"
        if not (version.is_file() and (folder / "include" / "torch" / "csrc" / "stable").is_dir()):
            continue
        found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text())
        if found and (int(found[1]), int(found[2])) >= OLDEST_TORCH:
            return folder
    return None


def find_compiler():
    return next((c for c in [os.environ.get("CXX"), "c++", "g++", "clang++"] if c and shutil.which(c)), None)


class CMakeBuild(build_ext):
    """One cmake and one ninja run for all native targets."""

    def run(self):
        try:
            self.build_native()
        except Exception as error:
            for stale in self.native_files():
                stale.unlink()
            if isinstance(error, subprocess.CalledProcessError):
                error = RuntimeError(f"{Path(error.cmd[0]).name} failed, its messages are above")
            banner = "=" * 100
            print(
                f"\n{banner}\nmetafast: NO NATIVE CODE IN THIS BUILD: {error}\n"
                "The package works without it, slower: every op runs its PyTorch reference.\n"
                f"METAFAST_REQUIRE_NATIVE=1 makes this an error; docs/install.md says what is needed.\n{banner}\n",
                file=sys.stderr,
                flush=True,
            )
            if flag("METAFAST_REQUIRE_NATIVE", False):
                raise SystemExit(1) from error

    def build_native(self):
        if sys.platform == "win32":
            raise RuntimeError("the native libraries are not supported on Windows")
        if find_compiler() is None:
            raise RuntimeError("no C++ compiler found (g++ 11 or clang++ 14, or newer)")
        cmake, ninja = self.tool("cmake"), self.tool("ninja")
        torch = find_torch()
        if torch is None:
            raise RuntimeError(f"no torch >= {'.'.join(map(str, OLDEST_TORCH))} found to compile against")
        import pybind11

        # In place, the build folder is kept, so that a second run compiles only what changed.
        build = ROOT / "build" / "dev" if self.in_place() else Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "MF_TORCH_DIR": torch,
            "MF_OUTPUT_DIR": self.package_folder(),
            "Python_EXECUTABLE": sys.executable,
            "PYBIND11_FINDPYTHON": "ON",
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        configure = [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())]
        configure += os.environ.get("CMAKE_ARGS", "").split()
        compile_all = [cmake, "--build", build, *(["-j", str(self.parallel)] if self.parallel else [])]

        def build_with(cuda):
            subprocess.run([*configure, f"-DMF_CUDA={cuda}"], check=True)
            subprocess.run(compile_all, check=True)

        cuda = flag("METAFAST_CUDA", None)
        try:
            build_with({None: "AUTO", True: "ON", False: "OFF"}[cuda])
        except subprocess.CalledProcessError:
            if cuda is not None or shutil.which("nvcc") is None or flag("METAFAST_REQUIRE_NATIVE", False):
                raise
            print("metafast: the build with CUDA failed (above); trying again without it", file=sys.stderr, flush=True)
            build_with("OFF")

    @staticmethod
    def tool(name):
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.exists() else shutil.which(name)
        if not found:
            raise RuntimeError(f"{name} not found: pip install {name}")
        return found

    def in_place(self):
        return self.inplace or getattr(self, "editable_mode", False)

    def package_folder(self):
        return ROOT / "metafast" if self.in_place() else Path(self.build_lib).resolve() / "metafast"

    def native_files(self):
        return [*self.package_folder().glob("lib/*.so"), *self.package_folder().glob("_host.*.so")]

    def get_outputs(self):
        return [str(path) for path in self.native_files()]

    def get_output_mapping(self):
        return {}


def build_requirements():
    """The torch to compile against, where a compiler could use it and the target environment has none."""
    if "egg_info" not in sys.argv or find_compiler() is None or find_torch() is not None:
        return []
    return [(ROOT / "requirements" / "torch.txt").read_text().strip()]


setup(
    # Without sources: it marks the wheel as one with native code, CMake says which.
    ext_modules=[Extension("metafast._host", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=build_requirements(),
)
