"""Run packs from their specifications: `slurm.worker.run` under the name that commands and submitted jobs have for it.

python -m slurm.job runs/<sweep>/packs/<pack>.json ... [--code VERSION]
"""

from __future__ import annotations

import sys

from adapters.ending import end_well
from slurm.worker.run import main, run_task

__all__ = ["main", "run_task"]

if __name__ == "__main__":
    sys.exit(end_well(lambda: main(sys.argv[1:])))
