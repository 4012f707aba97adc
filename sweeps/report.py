"""What a sweep ends with: tables and sentences on the terminal, tables and figures in the sweep's folder."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

import figures
from adapters import parse_method
from analysis import (
    METRICS,
    Results,
    base_line,
    best_settings,
    compare,
    early_warning,
    export_compact,
    format_table,
    gauge_curve,
    load,
    paired_curve,
    pictures,
    plateau_sentence,
    power_sentence,
    robustness,
    score_curve,
    score_vs_distance,
    subject_scores,
    summary,
    tried_settings,
    write_tables,
)
from sweeps.driver import Outcome
from sweeps.grid import Scene
from sweeps.rates import write_rates
from training.provenance import commit
from training.store import writing


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
    console = Console(file=sys.stdout)
    needed = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.width = max(console.width, needed)  # a narrower terminal wraps lines, and nothing is cut off
    console.print(table)


def report_robustness(outcome: Outcome, scene: Scene, background: Path | None, docs: Path | None) -> None:
    """Fig. 2: the table by multiplier, the plateau in a sentence, the figure and the sheet of pictures."""
    results = outcome.results
    curves = robustness(results)
    show(summary(curves))
    say_plateaus(curves.plateaus)
    behind = evidence(background, results) if docs is None else None
    figure = figures.fig2_lr_robustness.draw(curves, robustness(behind) if behind is not None else None)
    save(figure, outcome.folder / "fig2_lr_robustness", docs)
    for name, sheet in sheets(results, scene).items():
        save(sheet, outcome.folder / name, docs)
        if docs is not None:
            (docs / f"{name}.pdf").unlink(missing_ok=True)  # in a repository a sheet's PNG is enough
    tables = {
        "summary": summary(curves),
        "plateau": curves.plateaus,
        "scores": curves.scores,
        "distances": curves.distances,
    }
    tables |= _comparisons(results, outcome.folder, docs)
    publish(outcome, docs, tables)


def say_plateaus(plateaus: pd.DataFrame) -> None:
    """One sentence on the DINO plateau of every series."""
    for _, row in plateaus[plateaus["metric"] == "dino"].iterrows():
        print(plateau_sentence(row))


def _comparisons(results: Results, folder: Path, docs: Path | None) -> dict[str, pd.DataFrame]:
    """What several methods on several subjects allow: every pair compared, scores over the distance, early gauges."""
    if results.runs["series"].nunique() < 2 or results.runs["subject"].nunique() < 3:
        return {}
    pairs = compare(subject_scores(results), ("at_best", "area"))
    print(power_sentence(pairs))
    save(figures.score_vs_distance.draw(score_vs_distance(results)), folder / "score_vs_distance", docs)
    return {"comparisons": pairs, "early_warning": early_warning(results)}


def evidence(folder: Path | None, results: Results) -> Results | None:
    """The committed results of other methods, if they are of the same model and as long a training as `results`."""
    if folder is None or not (folder / "runs.parquet").exists():
        return None
    found = load(folder)
    alike = [set(found.runs[name]) == set(results.runs[name]) for name in ("model_hash", "steps")]
    return found if all(alike) else None


def sheets(results: Results, scene: Scene) -> Mapping[str, object]:
    """One sheet of pictures for each series: subjects down, multipliers across."""
    own = {subject.name: subject.pictures[0] for subject in scene.subjects}
    found = pictures(results, step=-1)
    made: dict[str, object] = {}
    for series in results.runs["series"].unique():
        rows = found[found["series"].isin([series, "untouched base"])]
        rows = rows[rows["seed"].isna() | (rows["seed"] == rows["seed"].min())] if "seed" in rows else rows
        name = results.runs.loc[results.runs["series"] == series, "method"].iloc[0].replace(":", "-")
        stem = f"pictures_{name}" if f"pictures_{name}" not in made else f"pictures_{name}_{len(made)}"
        made[stem] = figures.picture_sheet.draw(rows, own)
    return made


def report_prolonged(outcome: Outcome, docs: Path | None) -> None:
    """Fig. 3: scores, distance and lambda against the steps."""
    results = outcome.results
    scores = score_curve(results, x="step")
    dino = scores[scores["metric"] == "dino"]
    show(dino[["series", "step", "mean", "low", "high", "num_subjects", "num_diverged"]])
    curves = {name: gauge_curve(results, name) for name in ("distance_rel", "lambda")}
    figure = figures.fig3_prolonged_training.draw(scores, curves["distance_rel"], curves["lambda"], base_line(results))
    save(figure, outcome.folder / "fig3_prolonged_training", docs)
    tables = {"scores": scores} | {name: curve for name, curve in curves.items() if len(curve)}
    publish(outcome, docs, tables)


def report_magnitude(outcome: Outcome, docs: Path | None) -> None:
    """Fig. 5 and App. C: DoRA minus fixed-magnitude DoRA, paired by subject."""
    results = outcome.results
    names = {m: results.runs.loc[results.runs["method"] == m, "series"].iloc[0] for m in ("dora", "dora-fixed")}
    difference = paired_curve(subject_scores(results), names["dora"], names["dora-fixed"])
    print(f"{names['dora']} minus {names['dora-fixed']}, paired by subject:")
    show(difference)
    curves = robustness(results)
    say_plateaus(curves.plateaus)
    save(figures.fig5_dora_magnitude.draw(curves, difference), outcome.folder / "fig5_dora_magnitude", docs)
    publish(outcome, docs, {"summary": summary(curves), "difference": difference, "plateau": curves.plateaus})


def report_norms(norms: pd.DataFrame, axis: str, folder: Path, docs: Path | None) -> None:
    """Fig. 4: norms by block, kind and attention."""
    keys = ["series", "block", "attention"]
    wide = norms.pivot_table(index=keys, columns="kind", values="mean", sort=False).reset_index()
    show(wide)
    save(figures.fig4_weight_norms.draw(norms, axis=axis), folder / "fig4_weight_norms", docs)
    keep_tables(folder, docs, {"weight_norms": norms})


def keep_tables(folder: Path, docs: Path | None, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables to a sweep's folder, and to `docs`."""
    write_tables(folder, tables)
    if docs is not None:
        write_tables(docs, tables)


def publish(outcome: Outcome, docs: Path | None, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables to the sweep's folder; to `docs` also what figures are redrawn from, and how it was made."""
    keep_tables(outcome.folder, docs, tables)
    if docs is not None:
        export_compact(outcome.results, docs)
        write_record(docs, outcome.results)


def save(figure: object, stem: Path, docs: Path | None) -> None:
    """Write a figure as PNG and PDF, say where, and copy it to `docs`."""
    paths = figures.save(figure, stem)  # type: ignore[arg-type]
    print(f"figure: {' '.join(str(path) for path in paths)}")
    if docs is not None:
        figures.save(figure, docs / stem.name)  # type: ignore[arg-type]


def write_record(docs: Path, results: Results) -> None:
    """Say how committed results came about: command, machine, date, commit, time and how many."""
    runs = results.runs.drop_duplicates("run_id")
    name, dirty = commit()
    lines = [
        "# How these results were made", "",
        f"- command: `{command()}`",
        f"- date: {datetime.date.today().isoformat()}; commit {name[:12]}{' with changes' if dirty else ''}",
        f"- machine: {processor()}, torch {torch.__version__}",
        f"- runs: {len(runs)} cells of {runs['subject'].nunique()} subjects x {runs['seed'].nunique()} seed, "
        f"{(runs['status'] == 'diverged').sum()} diverged; {runs['seconds'].sum() / 60:.0f} worker-minutes in all",
        f"- model hash {runs['model_hash'].iloc[0]}", "",
        "Redrawn from the Parquet files here by `python -c \"from analysis import load; load('.')\"` and `figures/`.",
    ]  # fmt: skip
    with writing(docs / "RECORD.md") as aside:
        aside.write_text("\n".join(lines) + "\n")


def command() -> str:
    """The command line, without the folder that results go to: that changes no result."""
    words = [f"sweeps/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    if "--runs" in words:
        del words[words.index("--runs") : words.index("--runs") + 2]
    return f"python {shlex.join(words)}"


def processor() -> str:
    """Name, cores and instruction set of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = f"{len(names)} cores of {names[0]}" if names else platform.processor() or "unknown processor"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def report_tuning(outcome: Outcome, scene: Scene, write: bool, rule: str) -> None:
    """The best setting of each method by the rule, printed, and written with its provenance."""
    results = outcome.results
    tried = tried_settings(results)
    show(tried.drop(columns="options").rename(columns={"method": "series"}))
    best = best_settings(tried)
    for _, row in best.iterrows():
        print(
            f"{row['method']}: lr {row['lr']:g}{_boundary(row)}, DINO {row['dino']:.3f}, CLIP-I {row['clip_i']:.3f}, "
            f"CLIP-T {row['clip_t']:.3f}{edge(row, tried[tried['method'] == row['method']])}"
        )
    keep_tables(outcome.folder, None, {"tuning": tried})
    if write:
        write_rates(
            scene.model_name if scene.model_name == "pocket" else Path(scene.setting.model).name,
            _table(scene, best, results.runs, rule),
        )


def edge(best: pd.Series, tried: pd.DataFrame) -> str:
    """A word where the best setting lies at an end of what was tried: there may be a better one beyond."""
    varied = [name for name in ("lr", "boundary") if tried[name].nunique() > 1]
    ends = [name for name in varied if best[name] in (tried[name].min(), tried[name].max())]
    return f" (at the edge of the grid of {' and '.join(ends)}: try a wider one)" if ends else ""


def _boundary(row: pd.Series) -> str:
    return "" if pd.isna(row["boundary"]) else f", lambda starts at {row['boundary']:g}"


def _table(scene: Scene, best: pd.DataFrame, runs: pd.DataFrame, rule: str) -> dict:
    methods = {}
    for _, row in best.iterrows():
        if row["options"] != parse_method(row["method"]).canonical:
            continue  # rates of unusual options are printed, not kept as the method's
        own = {} if pd.isna(row["boundary"]) else {"lr_lambda": float(row["lr"]), "boundary": float(row["boundary"])}
        methods[row["method"]] = {
            "lr": float(row["lr"]),
            **own,
            **{metric: round(float(row[metric]), 4) for metric in METRICS},
        }
    return {
        "model_hash": scene.model_hash, "rule": rule, "command": command(),
        "date": datetime.date.today().isoformat(), "machine": processor(), "steps": int(runs["steps"].max()),
        "rank": int(runs["rank"].max()), "subjects": sorted(runs["subject"].unique()),
        "seeds": [int(seed) for seed in sorted(runs["seed"].unique())],
        "methods": methods,
    }  # fmt: skip
