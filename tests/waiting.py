"""How tests wait: until something holds, however busy the machine is. What hangs fails after `HANG_S`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

HANG_S = 900.0  # far beyond what a machine needs that is a third as fast and shared


def wait_for(
    holds: Callable[[], bool], what: str, process: subprocess.Popen | None = None, every_s: float = 0.05
) -> None:
    """Wait until something holds, while a process runs if one is given."""
    end = time.monotonic() + HANG_S
    while not holds():
        assert process is None or process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < end, f"not within {HANG_S:g} s: {what}"
        time.sleep(every_s)
