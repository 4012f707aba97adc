"""Start a job: install signal handlers before any slow import, so that no warning is lost; then run `slurm.job`.

python -m slurm.task --sent runs/<sweep>/submissions/<token>.json [TASK]
python -m slurm.task runs/<sweep>/packs/<pack>.json ... [--code VERSION]
python -m slurm.task -                  # a worker of the program that writes a JSON list of packs to its standard input
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from adapters.ending import end_well
from training.stop import StopSignals


def main(arguments: Sequence[str]) -> int:
    """As `slurm.worker.run.main`, with ears."""
    with StopSignals(signal.SIGURG) as stop:
        from slurm.worker import run  # torch, diffusers: seconds, on a busy node a minute

        return run.main(arguments, stop)


if __name__ == "__main__":
    sys.exit(end_well(lambda: main(sys.argv[1:])))
