"""Does a higher rate leave another kind of update? Effective rank, leading energy and intruder dimensions against the rate."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from adapters.errors import BadInput
from analysis.series import BASE_AXIS
from figures.labels import fit_text
from figures.looks import looks
from figures.panels import draw_curves, draw_legend, limit_to_means
from figures.style import multiplier_axis, new_figure, num_beside, styled

TITLES = {
    "effective_rank": "effective rank of Wₜ − W₀",
    "energy_1": "energy in the first direction",
    "intruders": "intruder dimensions (of the first 10)",
}
WIDTH_IN = 11.0


@styled
def draw(curves: Mapping[str, pd.DataFrame], xlabel: str = BASE_AXIS) -> Figure:
    """One panel a quantity, at the end of training, the mean over the matrices: one line a series.

    Args:
        curves: `analysis.spectrum_curves(results)`; empty ones are left out.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if no run has spectra.
    """
    shown = {name: curves[name] for name in TITLES if name in curves and len(curves[name])}
    if not shown:
        raise BadInput("no run that has left its spectra: run python sweeps/lr_robustness.py --spectra first")
    every = pd.concat(shown.values(), ignore_index=True)
    styles = looks(every)
    width_in = WIDTH_IN * len(shown) / len(TITLES)
    beside = num_beside(len(shown), width_in, 3.0)
    down = -(-len(shown) // beside)
    figure = new_figure(width_in, 0.6 + 3.2 * down, wspace=0.05)
    for place, (name, frame) in enumerate(shown.items()):
        ax = figure.add_subplot(down, beside, place + 1, label=name)
        multiplier_axis(ax, every["multiplier"], xlabel)
        draw_curves(ax, frame, "multiplier", styles)
        limit_to_means(ax, [frame])
        ax.set_title(TITLES[name])
    draw_legend(figure, every, styles, base=False)
    fit_text(figure)
    return figure
