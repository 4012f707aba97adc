"""Put the page together: words and tables in HTML, numbers and pictures in JSON, plotly and page.js behind them.

The file needs nothing beside it and asks for nothing: its content security policy lets scripts run by their hashes alone, and
pictures come from the file itself. Names of strangers stand in it as text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from adapters.words import counted, plural
from analysis import Results, format_table, robustness, subject_scores, summary
from analysis.card import Card
from analysis.control_verdicts import control_tables
from analysis.metrics import main_scores, title_of
from analysis.notes import notes
from analysis.series import name_multipliers
from analysis.summary import leading_sentence, plateau_sentences
from analysis.tables import rounded
from figures.looks import looks
from figures.page.blocks import describe_blocks, final_table
from figures.page.curves import by_series, describe_looks, numbers, rate_charts
from figures.page.tiles import describe_pictures
from figures.scores_by_subject import at_best
from figures.style import multiplier_text
from figures.task_in_use import capitalised, of_its_task
from training.store import writing
from training.task_kinds import TaskKind, metrics

RELOAD_S = 15  # while the sweep runs
STALE_S = 1800  # a page that was written so long ago is not loaded again by itself
About = Sequence[tuple[str, str]]


def write_page(
    path: Path, results: Results, *, title: str, about: About = (), running: str = "", card: Card | None = None
) -> Path:
    """Write the page of results; arguments as for `make_page`.

    Raises:
        BadInput: if no run has ended, or a picture cannot be read.
        StoreError: if it cannot be written.
    """
    text = make_page(results, title=title, about=about, running=running, card=card)
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


@of_its_task
def make_page(results: Results, *, title: str, about: About = (), running: str = "", card: Card | None = None) -> str:
    """The page as HTML.

    Args:
        results: runs over learning rates, run folders or a compact copy.
        title: of the page.
        about: what is said of how the results came about: what, and the words.
        running: what is still to come; then the page says that it is provisional, names no plateau and loads itself again.
        card: of the method that the page is about: its verdict comes first.

    Raises:
        BadInput: if no run has ended, or a picture cannot be read.
    """
    kind, curves, scores = results.kind, rounded(robustness(results)), rounded(subject_scores(results))
    styles, xlabel = looks(curves.scores), name_multipliers(results.runs)
    names = list(styles)
    charts, seen = rate_charts(curves, names, xlabel), describe_pictures(results, names)
    blocks = describe_blocks(results, names)
    tables = {name: frame for name, frame in control_tables(results).items() if len(frame)}
    table = summary(curves)
    data = {
        "series": describe_looks(styles),
        "charts": charts,
        "subjects": _subjects(scores, names, kind),
        "unit": kind.unit,
        "headline": kind.headline.title,
        "blocks": blocks,
        "pictures": seen,
        "reload": RELOAD_S if running else 0,
        "written": int(time.time()) if running else 0,
        "stale": STALE_S,
        "files": {
            "summary.csv": _csv(table), "scores.csv": _csv(curves.scores), "distances.csv": _csv(curves.distances),
            "subjects.csv": _csv(scores), "plateau.csv": _csv(curves.plateaus), "matrices.csv": _csv(final_table(results)),
            **{f"{name}.csv": _csv(frame) for name, frame in tables.items()},
        },
    }  # fmt: skip
    each = plateau_sentences(curves.plateaus, results)
    lead = leading_sentence(curves.plateaus, scores, results)
    said = [running] if running else list(card.verdict) if card else [lead] if lead else each
    sections = [
        _header(title, said, bool(running), each if (lead or card) and not running else []),
        _card(card, kind) if card else "",
        '<fieldset id="series"><legend>Show</legend></fieldset>',
        _section("rates", "Scores over the learning rate", _charts(charts) + _details("The numbers", table)),
        _section("pictures", "Pictures", _pictures(seen, kind)) if kind.has_pictures else "",
        _section("subjects", capitalised(plural(kind.unit)), _subject_charts(kind)),
        _section("blocks", f"Inside the {kind.part}", _blocks(blocks)),
        _section("controls", "Controls of the scorers", "".join(map(_table, tables.values())) or "<p>Not measured.</p>")
        if kind.controls
        else "",
        _section("about", "How it came about", _about(results, about)),
        _section("data", "Data", '<p id="files"></p>'),
    ]
    return _document(title, "\n".join(sections), data)


def _subjects(scores: pd.DataFrame, names: Sequence[str], kind: TaskKind) -> dict[str, Any]:
    """Each subject's headline at each series' best rate, and its curves over the rates by metric; those that have charts."""
    best = at_best(scores[scores["metric"] == kind.headline.name])
    rows = scores.assign(mean=scores["value"], low=float("nan"), high=float("nan"), num_subjects=1, num_runs=1)
    curves: dict[str, dict[str, Any]] = {}
    for (subject, metric), own in rows.groupby(["subject", "metric"], sort=False, observed=True):
        if metric in metrics():
            curves.setdefault(str(subject), {})[str(metric)] = by_series(own, names, "multiplier")
    dots = [
        {
            "series": names.index(str(series)),
            "multiplier": multiplier_text(own["multiplier"].iloc[0]),
            "subjects": [str(name) for name in own["subject"]],
            "values": numbers(own["value"]),
        }
        for series, own in best.groupby("series", sort=False)
    ]
    return {"dots": dots, "curves": curves, "charts": main_scores(kind)}


def _header(title: str, said: Sequence[str], provisional: bool, more: Sequence[str]) -> str:
    kind = ' class="provisional" role="status"' if provisional else ""
    lines = "".join(f"<p{kind}>{_text(line)}</p>" for line in said)
    folded = "".join(f"<p>{_text(line)}</p>" for line in more)
    folded = f"<details><summary>The plateau of each method</summary>{folded}</details>" if more else ""
    return f"<header><h1>{_text(title)}</h1>{lines}{folded}</header>"


def _card(card: Card, kind: TaskKind) -> str:
    caveats = "".join(f"<li>{_text(words)}</li>" for words in card.caveats)
    body = _table(card.facts_in_words())
    if len(card.differences):
        body += f"<h3>Differences, paired by {_text(kind.unit)}</h3>{_table(card.differences_in_words())}"
    return _section(
        "card", f"{_text(card.name)} beside the others", f"{body}<h3>What this rests on</h3><ul>{caveats}</ul>"
    )


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2>{body}</section>'


def _charts(charts: dict[str, dict[str, Any]]) -> str:
    return f'<div class="charts">{"".join(_chart(name, chart["title"]) for name, chart in charts.items())}</div>'


def _chart(name: str, title: str) -> str:
    return (
        f'<figure><figcaption>{_text(title)}</figcaption><div class="chart" id="chart-{name}" role="img" '
        f'aria-label="{_text(title)}; the numbers stand in the tables and files of this page"></div></figure>'
    )


def _subject_charts(kind: TaskKind) -> str:
    unit, headline = _text(kind.unit), kind.headline.title
    own = "".join(_chart(f"subject-{name}", f"{title_of(name)} of this {kind.unit}") for name in main_scores(kind))
    behind = " and pictures" if kind.has_pictures else ""
    return (
        f"<p>A dot is a {unit} at the method's best rate. Choose one, here or in the list, to see its curves{behind}.</p>"
        f'<p><label>{capitalised(unit)} <select id="one-subject"></select></label></p><div class="charts">'
        + _chart("subjects", f"{headline} of every {kind.unit} at each method's best rate")
        + own
        + "</div>"
    )


def _pictures(seen: dict[str, Any], kind: TaskKind) -> str:
    """The sliders and the place for the tiles."""
    if not seen:
        return "<p>These results hold no pictures.</p>"
    less = _left_out(seen["left_out"], "picture")
    steps = "" if len(seen["steps"]) > 1 else " hidden"
    return (
        f'<div class="controls"><label>{capitalised(_text(kind.unit))} <select id="subject"></select></label>'
        '<label>Prompt <select id="prompt"></select></label>'
        '<label class="wide">Learning rate <output id="multiplier-said"></output>'
        f'<input type="range" id="multiplier" min="0" max="{len(seen["multipliers"]) - 1}" step="1"></label>'
        f'<label class="wide"{steps}>Steps <output id="step-said"></output>'
        f'<input type="range" id="step" min="0" max="{len(seen["steps"]) - 1}" step="1"></label></div>'
        '<p id="asked"></p><div id="tiles" aria-live="polite"></div>'
        f"<p>The frame's colour and the number: {_text(kind.headline.title)} of that prompt's pictures. "
        "A dashed frame: the run diverged.</p>" + less
    )


def _blocks(blocks: dict[str, Any]) -> str:
    if not blocks:
        return "<p>These results hold no dynamics.</p>"
    less = _left_out(blocks["left_out"], "rate")
    return (
        '<div class="controls"><label>Quantity <select id="quantity"></select></label>'
        '<label>Learning rate <select id="block-rate"></select></label></div>'
        '<p>Choose a block to see its matrices.</p><div class="charts" id="block-charts"></div>'
        '<h3 id="h-matrices" tabindex="-1"></h3>' + _chart("matrices", "Distance of each matrix at the end") + less
    )


def _left_out(count: int, noun: str) -> str:
    """What the page would have been too large for; "" where that is nothing."""
    return f"<p>Left out: {counted(count, noun)}, which the runs folder has.</p>" if count else ""


def _about(results: Results, about: About) -> str:
    """Base rates and their sources, how runs came about, and what did not come to an end."""
    runs = results.runs.drop_duplicates("run_id")
    commits = ", ".join(sorted({str(name)[:12] for name in runs["commit"].dropna()})) if "commit" in runs else ""
    seeds = ", ".join(map(str, sorted(runs["seed"].unique())))
    rows = [
        *about,
        ("runs", f"{len(runs)} of {counted(runs['subject'].nunique(), results.kind.unit)}, seeds {seeds}"),
        ("time", f"{runs['seconds'].sum() / 60:.1f} worker-minutes"),
        ("model", ", ".join(f"{a} ({b})" for a, b in zip(*(runs[n].astype(str).unique() for n in ("model", "model_hash"))))),
        ("trained at commit", commits or "unknown"),
    ]  # fmt: skip
    listed = "".join(f"<dt>{_text(what)}</dt><dd>{_text(words)}</dd>" for what, words in rows)
    lost = runs.loc[runs["diverged_step"].notna(), ["series", "multiplier", "subject", "seed", "diverged_step"]]
    parts = [f"<p>{_text(note)}</p>" for note in notes(results)] + [f"<dl>{listed}</dl>"]
    if len(lost):
        parts.append(_details(f"Diverged: {counted(len(lost), 'run')}, with the step", lost))
    if len(results.missing):
        parts.append(_details(f"Without a result: {counted(len(results.missing), 'planned run')}", results.missing))
    return "".join(parts)


def _details(title: str, frame: pd.DataFrame) -> str:
    return f"<details><summary>{_text(title)}</summary>{_table(frame)}</details>"


def _table(frame: pd.DataFrame) -> str:
    """A frame as people read it; first column the row's head."""
    shown = format_table(frame)
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in shown.columns)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in shown.itertuples(index=False)
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _csv(frame: pd.DataFrame) -> str:
    return rounded(frame).to_csv(index=False, lineterminator="\n")


def _text(words: Any) -> str:
    return html.escape(str(words), quote=True)


@functools.cache
def _scripts() -> tuple[str, str]:
    """plotly's bundle and the page's own script."""
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return plotly, (files("figures.page") / "page.js").read_text(encoding="utf-8")


@functools.cache
def _hashes() -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in _scripts())
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _document(title: str, body: str, data: dict[str, Any]) -> str:
    style = (files("figures.page") / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {_hashes()}; base-uri 'none'"
    )
    stored = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    plotly, own = _scripts()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)} · Plateau</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="page-data">{stored}</script>
<script>{plotly}</script>
<script>{own}</script>
</body>
</html>
"""
