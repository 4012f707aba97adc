"""How long a shared file system may take to show what another machine wrote. Imports no torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

from training.whole_files import StoreError

SETTLE_S = float(os.environ.get("PLATEAU_SETTLE_S", "10"))
"""How long a new file may stay unseen on other machines (attribute caches of network file systems)."""


def wait_for_file(path: Path) -> None:
    """Wait until a file that another machine has written is visible here.

    Raises:
        StoreError: if it is not after a while.
    """
    end = time.monotonic() + SETTLE_S
    while not path.exists():
        if time.monotonic() > end:
            raise StoreError(f"no file {path}")
        time.sleep(min(0.2, SETTLE_S / 5))
