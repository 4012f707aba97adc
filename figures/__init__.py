"""Draw frames: one file for each figure. Imports no torch, and matplotlib only when something is drawn."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = (
    "fig2_lr_robustness", "fig3_prolonged_training", "fig4_weight_norms", "fig5_dora_magnitude", "fig6_boundary_paths",
    "magnitude_direction", "ether_fig4_distances", "plateau_vs_setting", "rate_by_setting", "norms_by_block",
    "dynamics_by_block", "spectra_vs_rate", "scores_by_subject", "score_vs_distance", "matched_prompt", "controls",
    "sharpness_vs_rate", "around_the_best", "picture_sheet",
)  # fmt: skip


def save(figure: Figure, stem: Path | str, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write `<stem>.png`, `<stem>.pdf` and so on (see `figures.saving.save`)."""
    from figures.saving import save as save_figure

    return save_figure(figure, stem, formats)


def __getattr__(name: str) -> Any:
    """Import a figure's module at its first use: `figures.fig2_lr_robustness.draw(...)`."""
    if name in (*FIGURES, "saving", "style", "panels", "registry"):
        return importlib.import_module(f"figures.{name}")
    raise AttributeError(f"module 'figures' has no attribute {name!r}; figures: {', '.join(FIGURES)}")
