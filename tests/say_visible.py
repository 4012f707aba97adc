"""Stands for a worker process of `slurm.inline`, and says which GPUs it sees. A module of its own: it is imported there."""

from __future__ import annotations

import os
from typing import Any

from slurm.gpus import VISIBLE
from slurm.inline import Event


def say_visible(paths: Any, worker: int, events: Any, driver: Any) -> None:
    """Say what a worker sees."""
    events.put(Event("done", worker, os.environ.get(VISIBLE)))
