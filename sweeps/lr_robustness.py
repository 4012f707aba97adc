"""How wide is the plateau of learning rates? Scores and distances against the multiplier of each method's base rate.

Rebuilds Fig. 2 of DeLoRA (arXiv 2503.18225):

    python sweeps/lr_robustness.py --method delora
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver  # noqa: E402

NAME = "lr_robustness"
NUM_SUBJECTS = 6  # what three minutes on two cores allow at seven multipliers, with a margin
EVIDENCE = Path(__file__).resolve().parents[1] / "docs" / "evidence"


def drive(options: Options) -> int:
    """Run the grid, print the table and the plateau, draw the figure and the sheet of pictures."""
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, set_scene
    from sweeps.report import report_robustness

    scene = set_scene(options, num_subjects=NUM_SUBJECTS)
    outcome = run_sweep(options, scene, expand(options, scene), NAME)
    if outcome is not None:
        report_robustness(outcome, scene, background=EVIDENCE, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(Options, drive, __doc__ or ""))
