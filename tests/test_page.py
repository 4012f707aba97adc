"""The page of a sweep: what it says is what was computed, it asks for nothing, and strangers' names stay words."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis import Results, export_compact, load, robustness, subject_scores
from analysis.summary import leading_sentence
from figures.__main__ import main
from figures.page import blocks, make_page, tiles
from tests.make_runs import Shape, make_runs

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """LoRA, which diverges from 8x on, and DeLoRA, on three subjects with pictures."""
    shapes = {"lora": Shape(diverges_from=8.0), "delora": Shape(high=2.0)}
    return load(make_runs(tmp_path_factory.mktemp("page"), shapes=shapes, pictures=True))


@pytest.fixture(scope="module")
def page(results: Results) -> str:
    """Their page."""
    return make_page(results, title="three subjects", about=[("command", "python x.py --label '<b>'")])


def data_of(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    (stored,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.S)
    return json.loads(stored)


def without_scripts(page: str) -> str:
    """What people read."""
    return re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.S)


def test_curves_are_those_of_the_figures(page: str, results: Results) -> None:
    data, curves = data_of(page), robustness(results)
    names = [series["name"] for series in data["series"]]
    assert names == ["LoRA", "DeLoRA"]
    for metric, chart in data["charts"].items():
        frame = curves.distances if metric == "distance" else curves.scores[curves.scores["metric"] == metric]
        for curve in chart["curves"]:
            own = frame[frame["series"] == names[curve["series"]]]
            assert curve["x"] == own["multiplier"].tolist()
            assert curve["mean"] == pytest.approx(own["mean"].tolist(), rel=1e-3)
            assert [note.split(",")[0] for note in curve["note"]] == ["n = 3"] * len(own)
    assert "diverged: 3 of 3" in json.dumps(data["charts"]["dino"])


def test_the_first_sentence_has_the_difference_with_its_interval(page: str, results: Results) -> None:
    said = leading_sentence(robustness(results).plateaus, subject_scores(results), results)
    assert re.search(
        r"DeLoRA gains most DINO .* \[.*\]; LoRA comes next, .* \[.*\] below \(paired, n = 3 subjects\)", said
    )
    assert html.escape(said) in page


def test_every_picture_stands_under_its_rate_with_its_score(page: str, results: Results) -> None:
    data = data_of(page)
    seen = data["pictures"]
    assert (len(seen["subjects"]), len(seen["multipliers"]), seen["prompts"]) == (3, 7, 2)
    keys = {f"{s}/{u}/{p}/{m}/0" for s in (0, 1) for u in range(3) for p in (0, 1) for m in range(7)}
    keys |= {f"-1/{u}/{p}/0/0" for u in range(3) for p in (0, 1)}
    assert set(seen["tiles"]) == keys
    assert all(url.startswith("data:image/webp;base64,") for url in seen["images"])
    assert seen["tiles"]["0/0/0/6/0"]["diverged"] is True
    scores = results.scores.merge(results.runs[["run_id", "series", "multiplier", "subject"]], on="run_id")
    own = scores.query("series == 'DeLoRA' and multiplier == 1 and subject == 'cat' and metric == 'dino'")
    assert {seen["tiles"][f"1/0/{p}/2/0"]["score"] for p in (0, 1)} == {f"{value:.2f}" for value in own["value"]}


def test_the_page_asks_for_nothing_and_runs_its_own_scripts_alone(page: str) -> None:
    assert not re.search(r"""<(?:link|iframe|object|embed|form|base)\b|\s(?:src|href|action)=""", without_scripts(page))
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    wanted = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts}
    assert len(scripts) == 2
    assert set(rules["script-src"].split()) == wanted
    assert len(page.encode()) < 10e6


def test_names_of_strangers_are_words(tmp_path: Path) -> None:
    options = {"subjects": (HOSTILE.replace("/", ""), "cat", "owl"), "pictures": True, "multipliers": (1.0, 2.0)}
    results = load(make_runs(tmp_path, **options))
    page = make_page(results, title=HOSTILE, about=[(HOSTILE, HOSTILE)])
    assert HOSTILE not in page
    assert HOSTILE.replace("/", "") not in page
    assert html.escape(HOSTILE) in page
    assert HOSTILE.replace("/", "") in data_of(page)["subjects"]["curves"]


def test_a_running_sweep_is_provisional_and_names_no_plateau(results: Results) -> None:
    page = make_page(results, title="so far", running="4 of 42 cells have ended")
    assert re.search(r'<p class="provisional" role="status">4 of 42 cells have ended</p>', page)
    assert "keeps half of its best gain" not in without_scripts(page)
    assert "gains most DINO" not in without_scripts(page)
    assert data_of(page)["reload"] > 0


def test_one_cell_without_pictures_and_runs_that_all_diverged_have_a_page(tmp_path: Path) -> None:
    one = load(make_runs(tmp_path / "one", subjects=("cat",), multipliers=(1.0,)))
    page = make_page(one, title="one")
    assert "These results hold no pictures." in page
    assert "No plateau is named" in page or "no plateau" in page
    lost = load(make_runs(tmp_path / "lost", shapes={"lora": Shape(diverges_from=0.1)}))
    page = make_page(lost, title="lost")
    assert "some run diverged at every multiplier tried" in page
    assert "Diverged: 21 runs, with the step" in page


def test_a_page_that_would_be_too_large_says_what_is_left_out(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "MOST_BYTES", 4000)
    monkeypatch.setattr(blocks, "MOST_POINTS", 100)
    page = make_page(results, title="thin")
    data = data_of(page)
    shown = len(data["pictures"]["tiles"])
    assert 0 < shown < 90
    assert f"Left out: {90 - shown} pictures, which the runs folder has." in page
    assert data["blocks"]["multipliers"] == ["1"]
    assert "Left out: 6 rates, which" in page


def test_the_command_makes_it_from_a_compact_copy(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export_compact(results, tmp_path / "copy", shown=results.images())
    assert main(["page", str(tmp_path / "copy")]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == tmp_path / "copy" / "report.html"
    found, wanted = data_of(written.read_text(encoding="utf-8")), data_of(make_page(results, title="copy"))
    assert found["charts"] == wanted["charts"]
    assert found["pictures"]["tiles"].keys() == wanted["pictures"]["tiles"].keys()


def test_bad_input_is_one_line(results: Results, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["page", str(tmp_path / "none")]) == 2
    assert "no results folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["page", str(tmp_path / "empty")]) == 2
    assert "no runs in" in capsys.readouterr().err
    export_compact(results, tmp_path / "copy")
    (tmp_path / "copy" / "report.html").mkdir()
    assert main(["page", str(tmp_path / "copy")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
