"""What every pack of a sweep shares besides its cells: where its inputs lie, and how the work is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.cell import RunningFlags
from training.store import StoreError

CHECKPOINT_S = float(os.environ.get("PLATEAU_CHECKPOINT_S", "30"))


@dataclass(frozen=True)
class Setting(RunningFlags):
    """What every pack of a sweep shares, besides its cells: this, and how the work is done.

    Attributes:
        model: its folder or hub id, already located.
        subjects: where the units lie: a folder of subjects, or what the task trains on in place of it.
        dino, clip: scorers, folders or hub ids; "" where a task has none.
        token, instance_prompt: how a subject is called in prompts; "" where a task has none.
        runs: the runs folder (class pictures are kept in it).
        device: "cpu" or "cuda".
        threads: CPU threads of one worker; 0 leaves torch's choice.
        checkpoint_every_s: seconds between checkpoints.
    """

    model: str
    dino: str
    clip: str
    subjects: str
    token: str
    instance_prompt: str
    runs: str
    device: str = "cpu"
    threads: int = 0
    checkpoint_every_s: float = CHECKPOINT_S

    @classmethod
    def read(cls, path: Path, contents: dict[str, Any]) -> Setting:
        """The setting of a pack's specification.

        Raises:
            StoreError: if a field is missing or unknown; the message names the file.
        """
        try:
            return cls(**contents["setting"])
        except TypeError as error:
            raise StoreError(f"damaged file {path}: setting: {str(error).partition(') ')[2]}") from None
