"""One record for every run: configuration, curves, seed, cost, versions, status and resumable checkpoints.

A run is a folder. `run.jsonl` holds JSON lines: a header, rows of metrics as they come, and a final status.
`checkpoints/` holds the last few checkpoints: tensors in safetensors, everything else in JSON, both under a checksum,
nothing pickled. Every file appears by a rename, every row by one append.
"""

from metafast.runs._run import CheckpointError, Curve, Restored, Run, list_runs, rng_state, seed_all, set_rng_state
from metafast.runs._versions import versions

__all__ = [
    "CheckpointError",
    "Curve",
    "Restored",
    "Run",
    "list_runs",
    "rng_state",
    "seed_all",
    "set_rng_state",
    "versions",
]
