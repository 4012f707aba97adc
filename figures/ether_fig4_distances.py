"""Fig. 4 of the ETHER paper (arXiv 2405.20271): distance of transformation and weights against the learning rate.

The paper's claim: OFT's and Naive's distances grow with the rate, ETHER's and ETHER+'s are bounded by their construction.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from adapters.errors import BadInput
from analysis.series import BASE_AXIS
from figures.labels import fit_text, from_zero
from figures.looks import looks
from figures.panels import draw_curves, draw_legend, limit_to_means, plain_log_axis
from figures.style import multiplier_axis, new_figure, num_beside, styled

WIDTH_IN = 8.6
FLAT = 2.0  # ratio of the ends of curves below which an axis is linear, from 0
TITLES = {
    "transform": "transformation ‖H − I‖",
    "distance": "weights ‖Wₜ − W₀‖ / ‖W₀‖",
}


@styled
def draw(transform: pd.DataFrame, distance: pd.DataFrame, xlabel: str = BASE_AXIS) -> Figure:
    """The distance of the transformation from the identity on the left, of the weights on the right.

    Axes are logarithmic, and those of flat curves linear, from 0.

    Args:
        transform: `analysis.distance_curve(results, gauge="transform_distance")`.
        distance: `analysis.distance_curve(results)`; series without a transformation are left out.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if no method has a transformation.
    """
    if transform.empty:
        raise BadInput(
            "no run of a method that multiplies the weights: run python sweeps/lr_robustness.py --method oft ether"
        )
    shown = distance[distance["series"].isin(set(transform["series"]))]
    styles = looks(transform)
    beside = num_beside(2, WIDTH_IN, 3.0) == 2
    figure = new_figure(WIDTH_IN, 3.9 if beside else 6.8, wspace=0.06)
    for place, (name, curves) in enumerate({"transform": transform, "distance": shown}.items()):
        ax = figure.add_subplot(*((1, 2) if beside else (2, 1)), place + 1, label=name)
        multiplier_axis(ax, curves["multiplier"], xlabel)
        is_flat = curves["mean"].max() < FLAT * curves["mean"].min()
        if not is_flat:
            plain_log_axis(ax, curves["mean"])
        draw_curves(ax, curves, "multiplier", styles)
        limit_to_means(ax, [curves], np.nan)
        if is_flat:
            from_zero(ax)
        ax.set_title(TITLES[name])
    draw_legend(figure, transform, styles, base=False)
    last = shown.sort_values("multiplier").groupby("series", sort=False).tail(1)
    ends = [(row.multiplier, row.mean, str(row.series), styles[str(row.series)].color) for row in last.itertuples()]
    fit_text(figure, {figure.axes[-1]: ends} if beside else None)
    return figure
