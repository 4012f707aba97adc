"""Find each method's base rate on a model: the same number of trials for each, on the tuning subjects alone.

The first trials of LoRA, DoRA and ETHER+ are eight rates, those of DeLoRA four rates of B and A times two starts of lambda, whose
rate is that of B and A. Then every method gets four more a round: beyond the edge of its grid where its best lies there, else
closer around its best; until no best lies at an edge, or for `--rounds` rounds.

By the default rule the best has the highest mean of DINO + CLIP-I + CLIP-T, the protocol's three scores, over the tuning subjects
at the last step; a setting at which any run diverged is out. DINO alone would choose rates at which the prompt is forgotten,
DINO + CLIP-T rates at which the subject is only half learnt.

    python sweeps/base_lr.py --method lora dora delora etherplus
    python sweeps/base_lr.py --trials runs/base_lr/trials.parquet --rule dino    # chooses anew, trains nothing
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import run_driver  # noqa: E402
from sweeps.search import SearchOptions  # noqa: E402

NAME = "base_lr"


@dataclass(frozen=True)
class TuningOptions(SearchOptions):
    """Flags of the search."""

    method: tuple[str, ...] = ("lora", "dora", "delora", "etherplus")
    """Methods to tune: names, `name:option=value,...`, or `all`."""
    trials: Path | None = None
    """Choose for the methods from this table of trials, print, write no rates and train nothing."""
    write: bool = True
    """Write the rates found to `sweeps/base_rates.toml`."""


def drive(options: TuningOptions) -> int:
    """Try settings on the tuning subjects, round after round, and keep the best."""
    from analysis import tried_settings
    from sweeps.grid import resolve_inputs
    from sweeps.report_tuning import read_trials, report_tuning, show_choice
    from sweeps.search import check, check_rule, search

    if options.trials is not None:
        check_rule(options)
        kind = options.kind[0]
        trials = read_trials(options.trials, kind, [spec.name for spec in options.specs()])
        show_choice(tried_settings(trials), options.rule, kind)
        return 0
    check(options)
    inputs = resolve_inputs(options, num_subjects=12, split="tuning")
    found = search(options, inputs, NAME)
    if found is not None:
        outcome, scores = found
        report_tuning(outcome, inputs, scores, rule=options.rule, docs=options.docs, write=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(TuningOptions, drive, __doc__ or ""))
