"""Record where and with what a run was made."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from training.accelerator import describe_arithmetic

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pyarrow")


@functools.cache
def commit() -> tuple[str, bool]:
    """The checkout's commit and whether files differ from it; ("", False) outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        run = functools.partial(
            subprocess.run, cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
        name = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        return name, bool(run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return "", False


def provenance(device: torch.device) -> dict:
    """Commit, versions, device, threads and instruction set of this process."""
    name, dirty = commit()
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "commit": name,
        "dirty": dirty,
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "device": str(device),
        "device_name": accelerator,
        "threads": torch.get_num_threads(),
        "arithmetic": describe_arithmetic(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
