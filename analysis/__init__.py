"""Run folders to tidy frames to numbers. Imports no torch.

from analysis import load, score_curve
results = load("runs/")
results.scores                # one row for each run, step, metric and prompt
score_curve(results)          # means with 95 % intervals over subjects
"""

from analysis.compact import export_compact
from analysis.curves import (
    base_line,
    distance_curve,
    gauge_curve,
    paired_curve,
    score_curve,
    subject_distances,
    subject_scores,
)
from analysis.load import METRICS, Results, load
from analysis.norms import weight_norms
from analysis.pictures import pictures
from analysis.plateau import TOLERANCE, find_plateau, plateau
from analysis.summary import (
    Robustness,
    format_table,
    plateau_sentence,
    robustness,
    summary,
    to_markdown,
    write_tables,
)

__all__ = [
    "METRICS",
    "TOLERANCE",
    "Results",
    "Robustness",
    "base_line",
    "distance_curve",
    "export_compact",
    "find_plateau",
    "format_table",
    "gauge_curve",
    "load",
    "paired_curve",
    "pictures",
    "plateau",
    "plateau_sentence",
    "robustness",
    "score_curve",
    "subject_distances",
    "subject_scores",
    "summary",
    "to_markdown",
    "weight_norms",
    "write_tables",
]
