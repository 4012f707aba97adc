"""A set of figures, with the data of each, and tables; and the curves and sheets that several drivers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import figures
from adapters.method_words import BASE_MODEL
from analysis import (
    Results,
    Robustness,
    block_curves,
    loss_curve,
    pictures,
    robustness,
    scores_by_step,
    sharpness_vs_rate,
    spectrum_curves,
    summary,
    write_tables,
)
from analysis.block_means import QUANTITIES, STORED
from analysis.control_verdicts import control_scores, control_tables
from analysis.control_words import failing_words
from analysis.notes import notes
from analysis.series import BASE_AXIS, name_multipliers
from analysis.tables import rounded
from figures.note import add_note
from figures.style import multiplier_text
from figures.task_in_use import of_its_task
from training.store import SPECTRA, writing

MOST_SUBJECTS = 8  # on a sheet
MISSING = "missing"  # table of the planned runs that have no result
CONTROLS = "controls"  # a table and a figure
SHEETS = "pictures"  # what the names of sheets of pictures begin with


@dataclass
class FigureSet:
    """What results are shown as.

    Attributes:
        figures: by name.
        data: what each figure shows, by the figure's name.
        tables: by name.
        notes: what stands below every figure, and at a sweep's end.
        controls_fail: the subjects on which the scorers' controls fail, which tables of means over subjects carry.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    data: dict[str, pd.DataFrame] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    controls_fail: str = ""

    @classmethod
    def of(cls, results: Results) -> FigureSet:
        """Nothing yet but what is to be said of the results: base rates, missing runs, and the controls of the scorers."""
        found = {MISSING: results.missing, **control_tables(results)}
        tables = {name: table for name, table in found.items() if len(table)}
        return cls(tables=tables, notes=notes(results), controls_fail=failing_words(results))

    def add(self, name: str, figure: Figure, data: pd.DataFrame) -> None:
        """Add a figure with what it shows, the notes below it."""
        add_note(figure, self.notes)
        self.figures[name], self.data[name] = figure, data

    def save(self, folder: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
        """Write all of it: figures in every format, their data as CSV of the same name, tables as Markdown, LaTeX and CSV.

        Returns:
            The figures' files.

        Raises:
            BadInput: for an unknown format.
            StoreError: if the folder cannot be written.
        """
        paths = [path for name, figure in self.figures.items() for path in figures.save(figure, folder / name, formats)]
        for name, frame in self.data.items():
            with writing(folder / f"{name}.csv") as aside:
                rounded(frame).to_csv(aside, index=False, lineterminator="\n")
        write_tables(folder, {name: self._carry(table) for name, table in self.tables.items()})
        if MISSING not in self.tables:
            for path in folder.glob(f"{MISSING}.*"):  # of an earlier time, when runs were missing
                path.unlink()
        return paths

    def _carry(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of means over subjects, with the subjects whose controls fail where there are any."""
        is_mean = self.controls_fail and "num_subjects" in table
        return table.assign(controls_fail=self.controls_fail.partition(": ")[2]) if is_mean else table


@of_its_task
def add_curves(
    drawn: FigureSet, results: Results, name: str, behind: Results | None = None, order: Sequence[str] = ()
) -> Robustness:
    """Add the curves of Fig. 2 under a name, their summary and the plateaus; returns the curves, `order`'s series first."""
    curves = Robustness(*(arrange(frame, order) for frame in robustness(results)))
    grey, xlabel = robustness(behind) if behind is not None else None, name_multipliers(results.runs)
    figure = figures.fig2_lr_robustness.draw(curves, grey, xlabel=xlabel)
    drawn.add(name, figure, curve_data(curves))
    drawn.tables |= {"summary": summary(curves), "plateau": curves.plateaus}
    return curves


def add_controls(drawn: FigureSet, results: Results) -> None:
    """Add the scores of every kind of control, where they could be read and each is a picture's."""
    if CONTROLS in drawn.tables and results.kind.has_pictures:
        scores = control_scores(results)
        drawn.add(CONTROLS, figures.controls.draw(scores, drawn.tables[CONTROLS]), scores)


def add_blocks(drawn: FigureSet, results: Results) -> None:
    """Add what training does to each block, and its spectra: of one series at all its rates, of several near the base rate."""
    has_rates = bool(results.runs.groupby("series")["multiplier"].nunique().gt(1).any())
    if has_rates and results.runs["series"].nunique() > 1:
        nearest = min(results.runs["multiplier"].dropna().unique(), key=lambda multiplier: abs(np.log2(multiplier)))
        curves = block_curves(results.select(multiplier=nearest), STORED)
        curves = curves.assign(series=[f"{name}, {multiplier_text(nearest)}×" for name in curves["series"]])
    else:
        curves = block_curves(results, STORED, by_multiplier=has_rates)
    for name, quantities in {"dynamics_by_block": QUANTITIES, "spectra_by_block": SPECTRA}.items():
        if len(shown := curves[curves["quantity"].isin(quantities)]):
            drawn.add(name, figures.dynamics_by_block.draw(shown), shown)


def add_around_the_best(drawn: FigureSet, results: Results, curves: Robustness) -> None:
    """Add the curves around each one's own optimum, and the final loss, where there are several rates."""
    if results.runs["multiplier"].nunique() > 1:
        losses = loss_curve(results)
        shown = figures.around_the_best.panels(curves, losses)
        if shown:
            figure = figures.around_the_best.draw(curves, losses, name_multipliers(results.runs))
            data = [panel.frame.assign(panel=panel.name) for panel in shown]
            drawn.add("around_the_best", figure, pd.concat(data, ignore_index=True))


def add_rate_by_steps(drawn: FigureSet, results: Results) -> None:
    """Add scores by rate and training length, of the series with several rates that were scored on the way."""
    if results.scores.loc[results.scores["step"] > 0, "step"].nunique() > 1:
        rates = scores_by_step(results)
        is_surface = rates.groupby("series")[["multiplier", "value"]].transform("nunique").gt(1).all(axis=1)
        if is_surface.any():
            figure = figures.rate_by_setting.draw(rates[is_surface], xlabel=name_multipliers(results.runs))
            drawn.add("rate_by_steps", figure, rates[is_surface])


def add_spectra(drawn: FigureSet, results: Results) -> None:
    """Add the updates' spectra at the end against the rate, where runs have some."""
    curves = spectrum_curves(results)
    if any(map(len, curves.values())):
        figure = figures.spectra_vs_rate.draw(curves, name_multipliers(results.runs))
        data = [curve.assign(panel=name) for name, curve in curves.items() if len(curve)]
        drawn.add("spectra_vs_rate", figure, pd.concat(data, ignore_index=True))


def add_sharpness(drawn: FigureSet, results: Results) -> None:
    """Add sharpness at the start against the best rate, where it was measured."""
    found = sharpness_vs_rate(results)
    if len(found.points):
        drawn.add("sharpness_vs_rate", figures.sharpness_vs_rate.draw(found), found.points)
        drawn.tables |= {"sharpness": found.means, "sharpness_correlation": found.correlation}


def curve_data(curves: Robustness) -> pd.DataFrame:
    """Scores, distances and the base's line below each other, `panel` being the metric or "distance"."""
    scores = curves.scores.rename(columns={"metric": "panel"})
    base = curves.base.rename(columns={"metric": "panel"}).assign(series=BASE_MODEL)
    return pd.concat([scores, curves.distances.assign(panel="distance"), base], ignore_index=True)


def arrange(frame: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """The rows of the named series first, in that order."""
    if "series" not in frame:
        return frame
    places = {name: number for number, name in enumerate(order)}
    return frame.sort_values(
        "series",
        key=lambda names: names.map(lambda name: places.get(name, len(places))),
        kind="stable",
        ignore_index=True,
    )


def add_sheets(drawn: FigureSet, results: Results, curves: Robustness) -> None:
    """Add a sheet of pictures for each series, subjects down, multipliers across, and one of a subject, methods down."""
    if results.images().empty:
        return
    found, own, xlabel = sheet_pictures(results), results.own_pictures(), name_multipliers(results.runs)
    shown = set(found["series"])  # a copy may have come without pictures
    for series in [name for name in dict.fromkeys(curves.scores["series"]) if name in shown]:
        rows = found[found["series"].isin([series, BASE_MODEL])]
        method = results.runs.loc[results.runs["series"] == series, "method"].iloc[0].replace(":", "-")
        name = f"{SHEETS}_{method}"
        name = name if name not in drawn.figures else f"{name}_{len(drawn.figures)}"
        drawn.add(name, figures.picture_sheet.draw(rows, own, xlabel=xlabel), _without_files(rows))
    if results.runs["series"].nunique() > 1:
        add_sheet_of_one(drawn, found, own, "multiplier", xlabel)


def of_first_seed(found: pd.DataFrame) -> pd.DataFrame:
    """The pictures of the first seed, and the base model's, which have none."""
    return found[found["seed"].isna() | (found["seed"] == found["seed"].min())]


def of_first_subject(found: pd.DataFrame) -> pd.DataFrame:
    """The pictures of the first subject by name."""
    return found[found["subject"].isin(_trained(found)[:1])]


def _trained(found: pd.DataFrame) -> list[str]:
    """The subjects that something was trained on, by name: the base model may have drawn others too."""
    return sorted(found.loc[found["series"] != BASE_MODEL, "subject"].unique())


def sheet_pictures(results: Results) -> pd.DataFrame:
    """The pictures on sheets of multipliers: the first seed, the last step, the first subjects by name, chosen by no score."""
    found = of_first_seed(pictures(results, step=-1))
    return found[found["subject"].isin(_trained(found)[:MOST_SUBJECTS])]


def add_sheet_of_one(
    drawn: FigureSet, found: pd.DataFrame, own: Mapping[str, Path | bytes], columns: str, xlabel: str = BASE_AXIS
) -> None:
    """One subject, methods down, multipliers or steps across: the first subject by name, chosen by no score."""
    rows = of_first_subject(found)
    sheet = figures.picture_sheet.draw(rows, own, rows="series", columns=columns, xlabel=xlabel)
    drawn.add(f"{SHEETS}_by_method", sheet, _without_files(rows))


def _without_files(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns=["file", "run_id"])
