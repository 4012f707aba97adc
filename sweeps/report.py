"""Report a sweep: tables and sentences on the terminal, tables and figures in the sweep's folder."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from adapters.words import counted
from analysis import (
    Results,
    export_compact,
    format_table,
    load,
    pictures,
    power_sentence,
    write_tables,
)
from analysis.control_words import unmeasured_subjects, with_controls
from analysis.series import name_multipliers
from analysis.summary import plateau_sentences
from figures.figure_set import FigureSet, add_curves, of_first_subject, sheet_pictures
from figures.page import write_page
from figures.registry import draw_dora_magnitude, draw_lr_robustness, draw_prolonged_training
from sweeps.driver import PAGE, SweepOutcome, page_early
from training.provenance import commit
from training.states import RunStatus
from training.store import writing

NUM_SNAPSHOTS = 5  # of the weight norms, where their course matters


def show(frame: pd.DataFrame) -> None:
    """Print a table, intervals in brackets."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    text = format_table(frame)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(text.columns):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in text.itertuples(index=False):
        table.add_row(*row)
    console = Console(file=sys.stdout, markup=False, emoji=False)
    needed = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.width = max(console.width, needed)  # a narrower terminal wraps lines, and nothing is cut off
    console.print(table)


def report_robustness(outcome: SweepOutcome, background: Path | None, docs: Path | None) -> None:
    """Fig. 2: the table by multiplier, the plateau in a sentence, the figure and the sheets of pictures."""
    behind = evidence(background, outcome.results) if docs is None else None

    def look(drawn: FigureSet) -> None:
        drawn.save(outcome.folder, ("png",))
        show(drawn.tables["summary"])
        say_plateaus(drawn.tables["plateau"], outcome.results)

    drawn = draw_lr_robustness(outcome.results, behind, look)
    if "comparisons" in drawn.tables:
        print(
            with_controls(power_sentence(drawn.tables["comparisons"], unit=outcome.results.kind.unit), outcome.results)
        )
    publish(outcome, drawn, docs, draw_lr_robustness, shown=sheet_pictures)


def draw_early(outcome: SweepOutcome, said: str) -> Path:
    """Fig. 2 and the page of what there is so far, with a sentence that says so; returns the page."""
    drawn = FigureSet.of(outcome.results)
    drawn.notes.insert(0, said)
    add_curves(drawn, outcome.results, "fig2_lr_robustness")
    drawn.save(outcome.folder, ("png",))
    return page_early(outcome, said)


def say_plateaus(plateaus: pd.DataFrame, results: Results) -> None:
    """One sentence on the plateau of every series, by the score that conclusions rest on."""
    print("\n".join(plateau_sentences(plateaus, results)))


def evidence(folder: Path | None, results: Results) -> Results | None:
    """The committed results of other methods on the same subjects and prompts; None where there are no such results.

    Model, length of training, optimiser and the multipliers' meaning must be the same.
    """
    if folder is None or not (folder / "runs.parquet").exists():
        return None
    found = load(folder)
    alike = [set(found.runs[name]) == set(results.runs[name]) for name in ("model_hash", "steps")]
    alike.append(name_multipliers(found.runs) == name_multipliers(results.runs))
    subjects = set(results.runs["subject"])
    if not all(alike) or not subjects <= set(found.runs["subject"]):
        return None
    found, asked = found.select(subject=sorted(subjects)), set(results.scores["prompt"])
    return found.at_prompts(asked) if asked <= set(found.scores["prompt"]) else None


def report_prolonged(outcome: SweepOutcome, docs: Path | None) -> None:
    """Fig. 3: scores, distance and lambda against the steps; a subject's pictures along them."""
    drawn = draw_prolonged_training(outcome.results)
    scores = drawn.tables["scores"]
    headline = scores[scores["metric"] == outcome.results.kind.headline.name]
    show(headline[["series", "step", "mean", "low", "high", "num_subjects", "num_diverged"]])
    publish(outcome, drawn, docs, draw_prolonged_training, shown=lambda results: of_first_subject(pictures(results)))


def report_magnitude(outcome: SweepOutcome, docs: Path | None) -> None:
    """Fig. 5 and App. C: DoRA minus fixed-magnitude DoRA, paired by subject; magnitudes against directions."""
    drawn = draw_dora_magnitude(outcome.results)
    print("DoRA minus DoRA with fixed magnitude, paired by subject:")
    show(drawn.tables["difference"])
    say_plateaus(drawn.tables["plateau"], outcome.results)
    if "magnitude_direction" in drawn.tables:
        print("correlation of the changes of magnitude and direction, over the matrices and snapshots of a run:")
        table = drawn.tables["magnitude_direction"]
        show(table[table["kind"] == "all"].drop(columns=["method", "kind"]))
    publish(outcome, drawn, docs, draw_dora_magnitude, num_norms=NUM_SNAPSHOTS)


def report_norms(drawn: FigureSet, folder: Path, docs: Path | None) -> None:
    """Fig. 4 of a model or of runs: norms by block, kind and attention."""
    norms = drawn.tables["weight_norms"]
    wide = norms.pivot_table(index=["series", "block", "attention"], columns="kind", values="mean", sort=False)
    show(wide.reset_index())
    say_where(drawn.save(folder))
    if docs is not None:
        drawn.save(docs, ("png",))


def publish(
    outcome: SweepOutcome,
    drawn: FigureSet,
    docs: Path | None,
    draw: Callable[[Results], FigureSet],
    *,
    shown: Callable[[Results], pd.DataFrame] | None = None,
    num_norms: int = 2,
) -> None:
    """Write what was drawn to the sweep's folder; to `docs` a compact copy, what is drawn from that, and how it was made.

    Args:
        outcome: the sweep's.
        drawn: figures and tables.
        docs: a folder in the repository, or None.
        draw: draws results: `docs` holds what can be drawn again from `docs` alone, as PNG.
        shown: finds the pictures that go along to `docs`; None for none. Earlier copies may have come without any.
        num_norms: as for `export_compact`.
    """
    say_notes(drawn)
    if outcome.results.kind.has_pictures and (unmeasured := unmeasured_subjects(outcome.results)):
        print(
            f"The scorers' controls were not measured on {', '.join(unmeasured)}: python -m training.controls "
            f"{outcome.folder} does it"
        )
    say_where(drawn.save(outcome.folder))
    about = [("command", command()), ("machine", processor())]
    print(f"page: {write_page(outcome.folder / PAGE, outcome.results, title=outcome.folder.name, about=about)}")
    if docs is not None:
        keep_in_docs(outcome.results, docs, draw, shown=shown, num_norms=num_norms)


def keep_in_docs(
    results: Results,
    docs: Path,
    draw: Callable[[Results], FigureSet],
    *,
    shown: Callable[[Results], pd.DataFrame] | None = None,
    num_norms: int = 2,
) -> None:
    """Write a compact copy to `docs`, what is drawn from that, and how it was made; arguments as for `publish`."""
    rows = None
    if shown is not None and not (all_rows := results.images()).empty:
        rows = all_rows[all_rows["file"].isin(set(shown(results)["file"]))]
    export_compact(results, docs, num_norms=num_norms, shown=rows)
    draw(load(docs)).save(docs, ("png",))
    write_record(docs, results)


def say_notes(drawn: FigureSet) -> None:
    """Print which base rate each series has and where it comes from, and which runs are missing."""
    for note in drawn.notes:
        print(note)


def say_where(paths: Sequence[Path]) -> None:
    """Print the paths of figures, those of one figure on a line."""
    for stem in dict.fromkeys(path.with_suffix("") for path in paths):
        print(f"figure: {' '.join(str(path) for path in paths if path.with_suffix('') == stem)}")


def keep_tables(folder: Path, docs: Path | None, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables to a sweep's folder, and to `docs`."""
    for place in (folder, *([docs] if docs is not None else [])):
        write_tables(place, tables)


def write_record(docs: Path, results: Results) -> None:
    """Say how committed results came about: command, machine, date, commit, time and how many."""
    runs = results.runs.drop_duplicates("run_id")
    name, dirty = commit()
    lines = [
        "# How these results were made", "",
        f"- command: `{command()}`",
        f"- trained at commit {trained_at(runs)}; drawn on {datetime.date.today().isoformat()} at {name[:12]}"
        f"{' with changes' if dirty else ''}",
        f"- machine: {processor()}, torch {torch.__version__}",
        f"- runs: {counted(len(runs), 'cell')} of {counted(runs['subject'].nunique(), results.kind.unit)} x "
        f"{counted(runs['seed'].nunique(), 'seed')}, "
        f"{(runs['status'] == RunStatus.DIVERGED).sum()} diverged; {runs['seconds'].sum() / 60:.0f} worker-minutes in all",
        f"- model hash {runs['model_hash'].iloc[0]}", "",
        "Drawn again from the Parquet files beside this, without training anything, by `python -m figures`.",
    ]  # fmt: skip
    with writing(docs / "RECORD.md") as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def trained_at(runs: pd.DataFrame) -> str:
    """The commits that runs were trained at, with the number of runs where there are several."""
    found = Counter(runs.get("commit", pd.Series("", index=runs.index)).fillna(""))
    return ", ".join(
        f"{name or 'none'} ({counted(count, 'run')})" if len(found) > 1 else name for name, count in found.most_common()
    )


def command() -> str:
    """The command line, without the folder that results go to: that changes no result."""
    words = [f"sweeps/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    if "--runs" in words:
        del words[words.index("--runs") : words.index("--runs") + 2]
    return f"python {shlex.join(words)}"


def processor() -> str:
    """Name, cores and instruction set of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = f"{counted(len(names), 'core')} of {names[0]}" if names else platform.processor() or "unknown processor"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
