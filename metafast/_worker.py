"""What a worker process does first, whoever started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

import torch


def begin_worker(threads: int = 1) -> None:
    """Leave Ctrl-C to the parent, take so many threads, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group; the parent says when to stop
    torch.set_num_threads(threads)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A parent killed outright takes its workers along, instead of leaving them behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
