"""`metafast env`: what is installed, what this machine has, and what runs where."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

PACKAGES = (
    "metafast", "torch", "numpy", "safetensors", "triton", "matplotlib", "datasets", "scikit-learn", "transformers",
    "accelerate", "optuna", "torchmetrics",
)  # fmt: skip
VARIABLES = ("METAFAST_DATA", "METAFAST_CUDA", "METAFAST_REQUIRE_NATIVE")


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON to this file instead of printing.")] = None,
) -> None:
    """Print versions, CPU level, devices, and which backend serves which op and why."""
    facts = environment()
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        typer.echo(f"wrote {output}")
    elif as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)


def environment() -> dict[str, Any]:
    """Everything that `metafast env` prints, ready for JSON."""
    import torch

    from metafast import ops
    from metafast._build import MISSING, build_info, machine_info

    return {
        "versions": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: _version(name) for name in PACKAGES},
        },
        "native": build_info() or {"missing": MISSING},
        "machine": {**machine_info(), "torch_threads": torch.get_num_threads()},
        "devices": _devices(torch),
        "backends": ops.backend_report(),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices(torch: Any) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices.append({
            "device": f"cuda:{index}",
            "name": about.name,
            "capability": f"{about.major}.{about.minor}",
            "memory_bytes": about.total_memory,
        })  # fmt: skip
    return devices


def _print(facts: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)

    def section(title: str, rows: list[tuple[str, str]]) -> None:
        table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(name, text)
        console.print(table)

    section("Versions", [(name, text or "not installed") for name, text in facts["versions"].items()])

    native, machine = facts["native"], facts["machine"]
    if "missing" in native:
        built = [("native build", f"none ({native['missing']}); docs/install.md says how to build one")]
    else:
        built = [
            ("native build", f"{native['version']} {native['git_commit'] or 'no commit'}, {native['build_type']}"),
            ("compiler", " + nvcc ".join(filter(None, [native["compiler"], native["cuda_compiler"]]))),
            ("targets", ", ".join(native["targets"])),
            ("CPU kernels for", ", ".join(native["isas"]) or "none"),
        ]
    section("Build", built)

    features = ", ".join(name for name, present in machine["cpu_features"].items() if present)
    caches = ", ".join(f"{name} {_size(size)}" for name, size in machine["cache_bytes"].items() if size)
    section("Machine", [
        ("CPU", machine["cpu"]),
        ("level", f"{machine['cpu_level']} ({features or 'no vector feature that kernels use'})"),
        ("cores", f"{machine['cores']}, of which torch uses {machine['torch_threads']}"),
        ("caches", caches or "unknown"),
        *((d["device"], f"{d['name']}, sm_{d['capability'].replace('.', '')}, {_size(d['memory_bytes'])}")
          for d in facts["devices"]),
        *([] if facts["devices"] else [("GPU", "none that torch can use")]),
    ])  # fmt: skip

    table = Table(title="Backends", title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in ("op", "device", "backend", "why"):
        table.add_column(column, overflow="fold", no_wrap=column == "op")
    for row in facts["backends"]:
        table.add_row(row["op"], row["device"], row["backend"], row["reason"])
    console.print(table)

    section("Environment variables", [(name, text or "not set") for name, text in facts["variables"].items()])


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count} B"
