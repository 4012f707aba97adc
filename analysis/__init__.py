"""Read run folders into tidy frames, and compute numbers from them. Imports no torch.

from analysis import load, score_curve
results = load("runs/")
results.scores                # one row for each run, step, metric and prompt
score_curve(results)          # means with 95 % intervals over subjects
"""

from analysis.best_settings import best_settings, best_table, trial_scores, tried_settings
from analysis.block_curves import block_curves
from analysis.compact_copy import export_compact
from analysis.comparisons import compare, power_sentence
from analysis.control_verdicts import control_gaps, judge_controls
from analysis.curves import base_line, centre_on_best, paired_curve, run_scores, score_curve, subject_scores
from analysis.directions import magnitude_direction, magnitude_direction_correlation
from analysis.distance_collapse import coincidence, run_ends, score_vs_distance
from analysis.distances import distance_curve, gauge_curve, loss_curve, spectrum_curves, subject_distances
from analysis.divergence import divergence_rates
from analysis.early_warning import early_warning
from analysis.load import load
from analysis.matched_prompt import MatchedPrompt, matched_prompt
from analysis.norms import weight_norms
from analysis.permutation import holm, sign_flip
from analysis.pictures import pictures
from analysis.plateau import TOLERANCE, find_plateau, joint_plateau, plateau
from analysis.plateau_by_setting import plateau_by_setting, scores_by_setting, scores_by_step
from analysis.power import detectable_difference
from analysis.results import Results
from analysis.sharpness_vs_rate import SharpnessVsRate, sharpness_vs_rate
from analysis.summary import Robustness, plateau_sentence, robustness, summary, unfit_subjects
from analysis.tables import format_table, to_latex, to_markdown, write_tables
from analysis.variance import split_variance, variance_table

__all__ = [
    "MatchedPrompt",
    "TOLERANCE",
    "Results",
    "Robustness",
    "SharpnessVsRate",
    "base_line",
    "best_settings",
    "best_table",
    "block_curves",
    "centre_on_best",
    "coincidence",
    "compare",
    "control_gaps",
    "detectable_difference",
    "distance_curve",
    "divergence_rates",
    "early_warning",
    "export_compact",
    "find_plateau",
    "format_table",
    "gauge_curve",
    "holm",
    "joint_plateau",
    "judge_controls",
    "load",
    "loss_curve",
    "magnitude_direction",
    "magnitude_direction_correlation",
    "matched_prompt",
    "paired_curve",
    "pictures",
    "plateau",
    "plateau_by_setting",
    "plateau_sentence",
    "power_sentence",
    "robustness",
    "run_ends",
    "run_scores",
    "score_curve",
    "score_vs_distance",
    "scores_by_setting",
    "scores_by_step",
    "sharpness_vs_rate",
    "sign_flip",
    "spectrum_curves",
    "split_variance",
    "subject_distances",
    "subject_scores",
    "summary",
    "to_latex",
    "to_markdown",
    "trial_scores",
    "tried_settings",
    "unfit_subjects",
    "variance_table",
    "weight_norms",
    "write_tables",
]
