"""Everything that results are shown as: drawn from runs and from compact copies alike, in every style, without torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import figures
from adapters import BadInput
from analysis import (
    Results,
    export_compact,
    load,
    magnitude_direction,
    magnitude_direction_correlation,
    measures,
    pictures,
    robustness,
)
from analysis.tables import clearly_best, escape_latex, to_latex
from figures.__main__ import main
from figures.figure_set import arrange, of_first_subject, sheet_pictures
from figures.registry import GALLERY, draw_dora_magnitude, draw_lr_robustness, find_defaults
from figures.style import STYLES, fit_size, use_style
from tests.make_runs import OPTIONS, Maker, Shape
from tests.test_figures import line_of
from training.read_picture import read_picture

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., tuple[int, list[str], str]]


def make_sweep(root: Path, sweep: str = "lr_robustness", **more: object) -> Path:
    """A sweep with subjects' photographs, as a driver leaves it; returns its folder."""
    shapes = {"lora": Shape(diverges_from=16.0), "delora": Shape(high=4.0)}
    maker = Maker(
        root, **({"shapes": shapes, "sweep": sweep, "pictures": True, "multipliers": (1.0, 4.0, 16.0)} | more)
    )
    maker.write()
    folder = root / sweep
    for base in (root / "base").iterdir():
        if not (folder / base.name).exists():
            base.rename(folder / base.name)  # where a driver leaves the base model's runs
    shutil.rmtree(root / "base")
    picture = next(root.rglob("*.png"), None)
    for subject in maker.subjects if picture is not None else ():
        (folder / "subjects").mkdir(exist_ok=True)
        (folder / "subjects" / f"{subject}.png").write_bytes(picture.read_bytes())
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sweeps: Fig. 2's, that of the settings (ranks), and one that a user named."""
    root = tmp_path_factory.mktemp("gallery")
    make_sweep(root)
    for rank in (2, 4):
        make_sweep(root, "rank_robustness", rank=rank, pictures=False)
    make_sweep(root, "mine", shapes={"lora": Shape()}, pictures=False, multipliers=(1.0,))
    return root


@pytest.fixture
def front(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line: exit code, lines of the output, standard error."""

    def run(*words: object) -> tuple[int, list[str], str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_all_draws_what_is_there_and_says_what_is_not(runs: Path, front: Run, tmp_path: Path) -> None:
    code, lines, errors = front("all", "--results", runs, "--out", tmp_path, "--format", "png")
    assert (code, errors) == (0, "")
    drawn = [Path(line) for line in lines if not line.startswith("not drawn")]
    assert {path.relative_to(tmp_path).as_posix() for path in drawn} == {
        "lr_robustness/fig2_lr_robustness.png", "lr_robustness/score_vs_distance.png", "lr_robustness/pictures_lora.png",
        "lr_robustness/pictures_delora.png", "lr_robustness/matched_prompt.png",
        "lr_robustness/around_the_best.png",
        "lr_robustness/dynamics_by_block.png",
        "lr_robustness/scores_by_subject.png", "lr_robustness/pictures_by_method.png", "rank_robustness/rank_robustness.png",
        "rank_robustness/plateau_vs_rank.png",
        "rank_robustness/rate_by_rank.png", "rank_robustness/dynamics_by_block.png",
    }  # fmt: skip
    for path in drawn:
        assert path.stat().st_size > 5_000
        assert len(pd.read_csv(path.with_suffix(".csv"))), "the data stand beside the figure"
    for name in ("summary", "plateau", "comparisons"):
        assert (tmp_path / "lr_robustness" / f"{name}.tex").read_text().startswith("\\begin{tabular}")
    missing = "\n".join(line for line in lines if line.startswith("not drawn"))
    for name in set(GALLERY) - {"lr_robustness", "rank_robustness"}:
        assert f"python sweeps/{name}.py makes them" in missing
    assert f"mine, which is no driver's name: python -m figures NAME --results {runs / 'mine'}" in missing


def test_a_width_that_is_none_is_one_line(runs: Path, front: Run, tmp_path: Path) -> None:
    code, lines, errors = front("lr_robustness", "--results", runs, "--out", tmp_path / "out", "--width", 1)
    assert (code, lines) == (2, [])
    assert "the width of figures is 1 inches; allowed: 2 to 40" in errors
    assert not (tmp_path / "out").exists()


def test_a_copy_draws_the_same_bytes_again_and_again(runs: Path, front: Run, tmp_path: Path) -> None:
    """Beside another sweep of its driver, which has a folder of its own (test subjects, say), and alone."""
    results = load(runs / "lr_robustness")
    shown = results.images()
    copies = tmp_path / "copies"
    for name in ("lr_robustness", "lr_robustness-other-subjects"):
        export_compact(results, copies / name, shown=shown[shown["step"].isin([0, 20])])
    words = ("--out", tmp_path / "both", "--format", "svg", "pdf")
    code, lines, _ = front("lr_robustness", "--results", copies, *words)
    assert code == 0
    assert not [line for line in lines if line.startswith("not drawn")]
    first, further = (contents(tmp_path / "both" / name) for name in ("lr_robustness", "lr_robustness-other-subjects"))
    assert first == further
    assert {name.rsplit(".")[-1] for name in first} == {"svg", "pdf", "csv", "md", "tex"}
    words = ("--out", tmp_path / "alone", "--format", "svg", "pdf")
    assert front("all", "--results", copies / "lr_robustness-other-subjects", *words)[0] == 0
    assert contents(tmp_path / "alone" / "lr_robustness") == first
    draw_lr_robustness(results).save(tmp_path / "whole", ("svg",))
    assert set(contents(tmp_path / "whole")) == {name for name in first if not name.endswith(".pdf")}
    for name in ("fig2_lr_robustness", "score_vs_distance"):
        of_runs, of_copy = (
            pd.read_csv(folder / f"{name}.csv") for folder in (tmp_path / "whole", tmp_path / "both/lr_robustness")
        )
        keys = [key for key in ("series", "multiplier", "subject", "seed", "panel", "metric") if key in of_runs]
        pd.testing.assert_frame_equal(
            *(
                frame.sort_values(keys, ignore_index=True).drop(columns="run_id", errors="ignore")
                for frame in (of_runs, of_copy)
            ),
            rtol=1e-6,
        )


def test_pictures_travel_with_their_subjects_own(runs: Path, tmp_path: Path) -> None:
    results = load(runs / "lr_robustness")
    found = pictures(results, step=-1)
    rows = results.images()
    export_compact(results, tmp_path / "copy", shown=rows[rows["file"].isin(set(found["file"]))])
    copy = load(tmp_path / "copy")
    again = pictures(copy, step=-1)
    pd.testing.assert_frame_equal(again.drop(columns="file"), found.drop(columns="file"))
    assert all(isinstance(file, bytes) for file in again["file"])
    for one, two in zip(found["file"], again["file"], strict=True):
        np.testing.assert_array_equal(read_picture(one).image, read_picture(two).image)
    assert set(copy.own_pictures()) == set(results.own_pictures()) == {"cat", "dog", "owl"}
    sheet = figures.picture_sheet.draw(again[again["series"] == "DeLoRA"], copy.own_pictures())
    assert "subject" in [text.get_text() for text in sheet.findobj(Text)]
    export_compact(copy, tmp_path / "none")
    assert load(tmp_path / "none").images().empty
    with pytest.raises(BadInput, match="of a compact copy"):
        read_picture(b"no picture")


def test_subjects_that_only_the_base_has_drawn_are_on_no_sheet(runs: Path) -> None:
    results = load(runs / "lr_robustness")
    kept = results.select(subject=["dog", "owl"])
    assert set(kept.base_runs["subject"]) == {"cat", "dog", "owl"}
    assert set(sheet_pictures(kept)["subject"]) == {"dog", "owl"}
    assert set(of_first_subject(pictures(kept))["subject"]) == {"dog"}


def test_only_what_figures_need_is_imported(runs: Path, tmp_path: Path) -> None:
    """In a process that has pandas, pyarrow, matplotlib, scipy and duckdb, and nothing else that Plateau uses."""
    absent = ("torch", "diffusers", "transformers", "safetensors", "peft", "tyro", "jaxtyping", "rich", "submitit")
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from figures.__main__ import main
sys.exit(main(["rank_robustness", "--results", {str(runs)!r}, "--out", {str(tmp_path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank_robustness" / "plateau_vs_rank.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fig9", "--results", "{runs}", "--out", "{out}"), "unknown figure 'fig9'; allowed: all, lr_robustness"),
        (
            ("all", "--results", "{runs}", "--out", "{out}", "--style", "poster"),
            "unknown style 'poster'; allowed: screen",
        ),
        (
            ("all", "--results", "{runs}", "--out", "{out}", "--format", "gif"),
            "unknown format 'gif'; allowed: png, pdf, svg",
        ),
        (("all", "--results", "{runs}/none", "--out", "{out}"), "no results folder"),
        (("all", "--results", "{runs}", "--out", "/proc/nowhere"), "cannot write /proc/nowhere"),
        (("all", "--results", "{out}", "--out", "{out}"), "nothing to draw in"),
        (("weight_norms", "--results", "{runs}", "--out", "{out}"), "python sweeps/weight_norms.py makes them"),
        (("all", "--out", "{out}"), "--results"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], said: str, runs: Path, front: Run, tmp_path: Path) -> None:
    code, lines, errors = front(*(word.format(runs=runs, out=tmp_path) for word in words))
    assert (code, lines) == (2, [])
    assert len(errors.strip().splitlines()) == 1
    assert said in errors
    assert not list(tmp_path.iterdir())


def test_sweeps_of_two_models_are_not_drawn_together(front: Run, tmp_path: Path) -> None:
    make_sweep(tmp_path / "runs", pictures=False, multipliers=(1.0,))
    make_sweep(tmp_path / "runs", pictures=False, multipliers=(1.0,), model_hash="other", model="sd15")
    code, _, errors = front("lr_robustness", "--results", tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 2
    assert "pocket (pocket-has)" in errors
    assert "sd15 (other)" in errors


def test_a_sweep_that_diverged_everywhere_is_a_clear_picture(front: Run, tmp_path: Path) -> None:
    make_sweep(tmp_path / "runs", pictures=False, shapes={"lora": Shape(diverges_from=0.1)})
    code, lines, errors = front("all", "--results", tmp_path / "runs", "--out", tmp_path / "out", "--format", "svg")
    assert (code, errors) == (0, "")
    assert lines[0].endswith("fig2_lr_robustness.svg")
    figure = draw_lr_robustness(load(tmp_path / "runs")).figures["fig2_lr_robustness"]
    assert "diverged everywhere" in [text.get_text() for text in figure.findobj(Text)]


def test_verdicts_stand_in_the_page_that_has_a_place_for_them(runs: Path, front: Run, tmp_path: Path) -> None:
    claims = tmp_path / "claims.toml"
    claims.write_text("""[[claim]]
id = "one"
source = "Fig. 2"
claim = "It holds."
sweep = "lr_robustness"
measure = "difference"
arguments = { a = "DeLoRA", b = "LoRA", of = "worst" }
low = 0.0
""")
    page = tmp_path / "out" / "README.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- verdicts -->\nold\n<!-- end of verdicts -->\nafter\n")
    words = ("rank_robustness", "--results", runs, "--out", tmp_path / "out", "--format", "svg", "--claims", claims)
    assert front(*words)[0] == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- verdicts -->\n\n| claim ")
    assert text.endswith("|\n\n<!-- end of verdicts -->\nafter\n")
    (line,) = [line for line in text.splitlines() if "It holds." in line]
    verdict = pd.read_csv(tmp_path / "out" / "verdicts.csv")["verdict"].iloc[0]
    assert "at least 0" in line
    assert verdict in line
    assert front(*words)[0] == 0
    assert page.read_text() == text
    sentence = tmp_path / "sentence.md"
    sentence.write_text(f"It holds: <!-- one: {verdict} -->?<!-- end -->.")
    assert front(*words, "--pages", sentence)[0] == 0
    assert re.fullmatch(r"It holds: <!-- .* -->-?[\d.]+ \[.*\]<!-- end -->\.", sentence.read_text())
    assert "a page of --pages cannot be read" in front(*words, "--pages", tmp_path / "nowhere.md")[2]
    assert "--pages needs --claims" in front(*words[:-2], "--pages", sentence)[2]
    sentence.write_text("It holds: <!-- one: nonsense -->?<!-- end -->.")
    assert "the sentence says 'nonsense'" in front(*words, "--pages", sentence)[2]
    claims.write_text("[[claim]]")
    assert front(*words)[0] == 2


# Styles.


@pytest.mark.parametrize("style", ["paper", "slides"])
def test_styles_have_their_widths_and_readable_text(style: str, runs: Path, tmp_path: Path) -> None:
    curves = robustness(load(runs / "lr_robustness"))
    smallest = {"screen": 7.5, "paper": 5.8, "slides": 10.8}
    for name in ("screen", style):
        with use_style(name):
            figure = figures.fig2_lr_robustness.draw(curves)
            figures.save(figure, tmp_path / name, ("svg",))
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= smallest[name] - 0.01
    assert figure.get_figwidth() in STYLES[style].widths_in
    assert figure.get_figheight() <= STYLES[style].max_height_in
    assert (tmp_path / "screen.svg").read_text() != (tmp_path / f"{style}.svg").read_text()


def test_a_size_is_the_smallest_width_that_does_not_crowd() -> None:
    with use_style("paper"):
        assert [fit_size(width, 4)[0] for width in (5.0, 7.0, 11.0, 30.0)] == [3.5, 5.2, 7.16, 7.16]
        assert fit_size(11, 40)[1] == 9.2
    assert fit_size(11, 4) == (11, 4)
    with pytest.raises(BadInput, match="allowed: screen, paper, slides"), use_style("poster"):
        pass


# LaTeX.


def scores(**columns: list[float]) -> pd.DataFrame:
    """Two or more rows with intervals a tenth wide on either side."""
    frame = pd.DataFrame({"series": ["a_1", "b", "c"], **columns})
    for name in columns:
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] - 0.1, frame[name] + 0.1
    return frame


def test_bold_is_only_what_lies_beyond_all_other_intervals() -> None:
    assert clearly_best(scores(dino=[0.2, 0.7, 0.4]), "dino") == 1
    assert clearly_best(scores(dino=[0.2, 0.7, 0.55]), "dino") is None, "intervals overlap"
    assert clearly_best(scores(drift=[0.2, 0.7, 0.95]), "drift") == 0, "less drift is better"
    assert clearly_best(scores(dino=[0.2, 0.7, float("nan")]), "dino") is None
    text = to_latex(scores(dino=[0.2, 0.7, 0.4]))
    assert [line for line in text.splitlines() if "textbf" in line] == [r"b & \textbf{0.700 [0.600, 0.800]} \\"]
    assert r"a\_1 & 0.200 [0.1, 0.300] \\" in text or r"a\_1 & 0.200 [0.100, 0.300] \\" in text
    assert text.startswith("\\begin{tabular}{lr}\n\\toprule\nseries & DINO \\\\\n\\midrule")
    assert text.endswith("\\bottomrule\n\\end{tabular}")


def test_latex_says_in_commands_what_its_fonts_lack() -> None:
    assert escape_latex("5 % of ‖W0‖ & λ_0 ≥ 1") == r"5 \% of $\lVert W_0\rVert$ \& $\lambda$\_0 $\geq$ 1"


# What is drawn.


def test_named_series_come_first() -> None:
    frame = pd.DataFrame({"series": ["c", "a", "b", "a"], "n": [1, 2, 3, 4]})
    assert arrange(frame, ["b", "a"])["n"].to_list() == [3, 2, 4, 1]


def test_defaults_are_what_most_runs_have(tmp_path: Path) -> None:
    options = {"lora": OPTIONS["lora"], "delora": OPTIONS["delora"]}
    for rank in (4, 8, 16):
        make_sweep(tmp_path, "setting_robustness", rank=rank, pictures=False, multipliers=(1.0, 4.0), options=options)
    results = load(tmp_path)
    assert find_defaults(results) == {"rank": [4]}, "of one varied setting any will do: the smallest"
    many = results.runs.assign(adam_weight_decay=0.01)
    changed = many[many["rank"] == 8].assign(adam_weight_decay=0.1, rank=8, run_id=lambda rows: rows["run_id"] + "w")
    both = Results(pd.concat([results.base_runs, many, changed]), results.sources)
    assert find_defaults(both) == {"rank": [8], "adam_weight_decay": [0.01]}


@pytest.fixture
def directions(tmp_path: Path) -> Results:
    """LoRA, DoRA and its fixed kind, with norms."""
    make_sweep(
        tmp_path, "dora_magnitude", pictures=False, multipliers=(1.0, 4.0), subjects=("cat", "dog", "owl", "fox"),
        shapes={name: Shape() for name in ("lora", "dora", "dora-fixed")},
    )  # fmt: skip
    return load(tmp_path)


def test_correlation_is_pearsons_in_each_run(directions: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    points = magnitude_direction(directions)
    assert set(points["series"]) == {"LoRA", "DoRA", "DoRA (fixed magnitude)"}
    assert points.groupby("run_id").size().eq(40).all()
    rng = np.random.default_rng(0)
    dd = rng.random(len(points))
    sign = np.where(points["method"] == "lora", 1.0, -1.0)
    points = points.assign(dd=dd, dm=sign * dd + 0.5 * rng.standard_normal(len(points)))
    table = magnitude_direction_correlation(points)
    rows = table[table["kind"] == "all"].set_index("method")
    assert (rows["num_subjects"] == 4).all()
    for method, group in points.groupby("method"):
        own = [np.corrcoef(run["dm"], run["dd"])[0, 1] for _, run in group.groupby("run_id")]
        assert rows["rho"][method] == pytest.approx(np.tanh(np.arctanh(own).mean()))
        assert rows["rho_low"][method] < rows["rho"][method] < rows["rho_high"][method]
    assert rows["rho"]["lora"] > 0.2 > -0.2 > rows["rho"]["dora"]
    still = magnitude_direction_correlation(points.assign(dm=0.0))
    assert still["rho"].isna().all(), "nothing correlates with what stays"
    figure = figures.magnitude_direction.draw(points, table)
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert (
        f"correlation {rows['rho']['lora']:.2f} [{rows['rho_low']['lora']:.2f}, {rows['rho_high']['lora']:.2f}]"
        in texts
    )
    assert [ax.get_label() for ax in figure.axes] == list(dict.fromkeys(points["series"]))
    with pytest.raises(BadInput, match="unknown axis 'layers'"):
        magnitude_direction(directions, axis="layers")
    with pytest.raises(BadInput, match="no ended run at 3 times"):
        magnitude_direction(directions, multiplier=3.0)


def test_the_correlation_is_what_claims_of_it_are_put_to(directions: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points = magnitude_direction(directions)
    points = points.assign(dm=rng.random(len(points)), dd=rng.random(len(points)))
    monkeypatch.setattr(measures, "magnitude_direction", lambda results: points)
    table = magnitude_direction_correlation(points)
    row = table[(table["series"] == "LoRA") & (table["kind"] == "all")].iloc[0]
    found = measures.MEASURES["direction_correlation"](directions, "LoRA")
    np.testing.assert_array_equal(found, [row["rho"], row["rho_low"], row["rho_high"], 4])


def test_magnitudes_are_compared_between_the_two_doras_alone(directions: Results) -> None:
    drawn = draw_dora_magnitude(directions)
    assert set(drawn.figures) == {"fig5_dora_magnitude", "magnitude_direction"}
    assert set(drawn.tables["summary"]["series"]) == {"base model", "DoRA", "DoRA (fixed magnitude)"}
    with pytest.raises(BadInput, match="no run of dora-fixed"):
        draw_dora_magnitude(directions.select(method=["dora", "lora"]))


def test_transformations_are_drawn_for_methods_that_have_one(tmp_path: Path) -> None:
    make_sweep(
        tmp_path,
        pictures=False,
        shapes={"lora": Shape(), "etherplus": Shape(), "delora": Shape()},
        multipliers=(1.0, 4.0),
    )
    results = load(tmp_path)
    final = results.final_dynamics.assign(transform_distance=lambda rows: 3 * rows["distance_rel"])
    final.loc[final["run_id"].astype(str).str.contains("lora"), "transform_distance"] = float("nan")
    object.__setattr__(results, "final_dynamics", final)
    drawn = draw_lr_robustness(results)
    transform, weights = drawn.figures["ether_fig4_distances"].axes
    (name,) = {str(line.get_label()) for line in transform.lines} - {"_diverged"}
    assert name == "ETHER+"
    both = [line_of(ax, "ETHER+") for ax in (transform, weights)]
    np.testing.assert_allclose(both[0][:, 1], 3 * both[1][:, 1], rtol=2e-5)
    with pytest.raises(BadInput, match="multiplies the weights"):
        figures.ether_fig4_distances.draw(drawn.data["ether_fig4_distances"][:0], drawn.data["ether_fig4_distances"])
