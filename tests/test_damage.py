"""Any damage to a file of a runs folder or of a compact copy: the right answer all the same, or one line; never another number.

Bits are flipped, files cut, emptied, swapped with their like of another run, and replaced by foreign ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import BadInput
from analysis import Results, export_compact, load
from analysis.compact_source import TABLES
from analysis.query import main as ask
from figures.draw_all import Manner, draw_all
from slurm.status.__main__ import Options
from slurm.status.__main__ import main as status
from slurm.store.layout import SweepFolder
from slurm.store.leases import Owner
from slurm.store.pack_states import survey
from sweeps.grid import ResolvedInputs
from sweeps.plan import Plan, open_sweep
from sweeps.progress import PlanProgress
from tests.make_runs import MATRICES, Shape, make_runs
from tests.make_sweep import FAR, Sweep
from training.cell import Cell
from training.command_line import end_well
from training.demand import read_costs, to_json
from training.planned import planned_runs
from training.store import RunFolder, StoreError, find_runs, read_json, read_part, write_signed
from training.whole_files import sign

FILES = {
    "run.json": "run.json", "scores": "scores.parquet", "dynamics": "dynamics/*.parquet", "steps": "steps/*.parquet",
    "norms": "norms/*.parquet", "pictures": "images/index.json",
}  # fmt: skip
DAMAGES = ("flip", "flip", "flip", "cut", "empty", "swap", "foreign")
FOREIGN_JSON = (
    "[]",
    "{}",
    "null",
    "[" * 5000,
    '{"schema": 1, "status": ["finished"]}',
    '{"runs": 3}',
    '"\\u001b[31m"',
    "\ufeff",
)
often = settings(max_examples=60, deadline=None, derandomize=True, database=None)
damages = st.tuples(st.sampled_from(DAMAGES), st.floats(0, 1, exclude_max=True))


def harm(path: Path, other: Path, how: str, where: float) -> None:
    """Damage one file; `where` from 0 to 1 says at which bit, or how."""
    whole = bytearray(path.read_bytes())
    bit = int(where * 8 * len(whole))
    if how == "flip":
        whole[bit // 8] ^= 1 << bit % 8
    elif how == "swap":
        whole = bytearray(other.read_bytes())
    elif how == "foreign":
        whole = bytearray(make_foreign(path, where))
    path.write_bytes(whole[: bit // 8] if how == "cut" else b"" if how == "empty" else whole)


def make_foreign(path: Path, where: float) -> bytes:
    """A file of the same kind with other content."""
    if path.suffix == ".json":
        return FOREIGN_JSON[int(where * len(FOREIGN_JSON))].encode()
    table, kinds = pq.read_table(path), [pa.string(), pa.int64(), pa.list_(pa.int8()), pa.timestamp("s")]
    number = int(where * table.num_columns)
    other = pa.nulls(table.num_rows, kinds[int(where * 997) % len(kinds)])
    changed = table.set_column(number, table.schema.names[number] + "x" * (int(where * 13) % 2), other)
    sink = pa.BufferOutputStream()
    pq.write_table(changed.replace_schema_metadata({b"plateau_schema": b"1"}), sink)
    return bytes(sink.getvalue())


@contextmanager
def harmed(path: Path, other: Path, how: str, where: float) -> Iterator[None]:
    """A damaged file inside the block."""
    whole = path.read_bytes()
    try:
        harm(path, other, how, where)
        yield
    finally:
        path.write_bytes(whole)


def assert_right_or_one_line(answer: Callable[[], object], right: str) -> None:
    """The answer in text is the right one, or an error of one line."""
    try:
        found = answer()
    except BadInput as error:
        line = str(error)
        assert line
        assert line.isprintable(), line
    else:
        assert found == right


def show_frames(root: Path) -> str:
    """Everything that is read of a folder, in text."""
    results = load(root)
    frames = [results.runs, results.scores, results.base, results.matrices, results.final_dynamics,
              results.trajectories("mean"), results.norms(), results.images()]  # fmt: skip
    if (root / "lr_robustness").is_dir():
        frames += [results.dynamics(), results.steps()]
    frames = [frame.drop(columns="path", errors="ignore") for frame in frames]
    return "".join(frame.astype({n: str for n in frame if frame[n].dtype == "category"}).to_csv() for frame in frames)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs and their base, and beside them what is read of them undamaged."""
    folder = tmp_path_factory.mktemp("damage") / "runs"
    shapes = {"lora": Shape(), "delora": Shape()}
    make_runs(folder, shapes=shapes, multipliers=(1.0, 2.0), subjects=("cat",), steps=4, pictures=True)
    (folder.parent / "right.txt").write_text(show_frames(folder))
    return folder


@given(kind=st.sampled_from(sorted(FILES)), damage=damages)
@often
def test_damaged_file_of_a_run_changes_no_number(kind: str, damage: tuple[str, float], runs: Path) -> None:
    one, other = (next(run.path.glob(FILES[kind])) for run in find_runs(runs / "lr_robustness")[1:3])
    with harmed(one, other, *damage):
        assert_right_or_one_line(lambda: show_frames(runs), (runs.parent / "right.txt").read_text())


SUMS = {
    "dynamics": "SELECT run_id, sum(distance) FROM dynamics GROUP BY ALL ORDER BY ALL",
    "steps": "SELECT run_id, sum(loss), max(step) FROM Steps GROUP BY ALL ORDER BY ALL",
    "norms": "SELECT run_id, sum(colnorm_mean) FROM norms GROUP BY ALL ORDER BY ALL",
    "scores": "SELECT run_id, sum(value) FROM scores GROUP BY ALL ORDER BY ALL",
}


@pytest.mark.parametrize("kind", SUMS)
def test_damaged_file_changes_no_answer_in_sql(kind: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask([SUMS[kind], str(runs)]) == 0
    answer = capsys.readouterr().out

    @given(damage=damages)
    @settings(often, max_examples=15)
    def holds(damage: tuple[str, float]) -> None:
        one, other = (next(run.path.glob(FILES[kind])) for run in find_runs(runs / "lr_robustness")[1:3])
        with harmed(one, other, *damage):
            code = ask([SUMS[kind], str(runs)])
        said = capsys.readouterr()
        assert (code == 0 and said.out == answer) or (code == 2 and re.fullmatch(r"error: .+\n", said.err)), said

    holds()


@given(name=st.sampled_from([*TABLES, "pictures", "blocks"]), damage=damages)
@often
def test_damaged_table_of_a_compact_copy_changes_no_number(name: str, damage: tuple[str, float], copy: Path) -> None:
    right = (copy / "right.txt").read_text()
    with harmed(copy / f"{name}.parquet", copy / "other" / f"{name}.parquet", *damage):
        assert_right_or_one_line(lambda: show_frames(copy), right)


@pytest.fixture(scope="module")
def copy(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact copy, what is read of it, and below it another one."""
    folder = tmp_path_factory.mktemp("copy")
    results = load(runs)
    export_compact(results, folder, shown=results.images())
    some = results.select(multiplier=1.0)
    export_compact(some, folder / "other", shown=some.images())
    (folder / "right.txt").write_text(show_frames(folder))
    return folder


def leave_asides(root: Path) -> list[Path]:
    """Beside every file what a writer leaves that is killed before it renames, and before it removes a link."""
    files = [path for path in root.rglob("*") if path.is_file()]
    asides = [path.with_name(f".{path.name}.0123abcd-7{more}.tmp") for path in files for more in ("", "-link")]
    for path, aside in zip([path for path in files for _ in range(2)], asides, strict=True):
        shutil.copy(path, aside)
    return asides


def test_what_a_killed_writer_left_is_no_file(runs: Path, sweep: Path) -> None:
    def look() -> tuple[str, list]:
        return show_frames(runs), survey(SweepFolder(sweep), None, settle=False)

    before, asides = look(), leave_asides(runs) + leave_asides(sweep)
    try:
        assert look() == before
        for run in find_runs(runs):
            run.verify()
    finally:
        for aside in asides:
            aside.unlink()


def test_figures_name_what_is_damaged_and_not_what_is_not_there(runs: Path, tmp_path: Path) -> None:
    one = find_runs(runs / "lr_robustness")[1].path / "scores.parquet"
    with harmed(one, one, "cut", 0.5), pytest.raises(BadInput, match=f"lr_robustness: damaged file {one}"):
        draw_all(["lr_robustness", "best_of_grid"], runs, tmp_path, Manner(formats=["svg"]))


def test_verify_finds_one_bit_anywhere(runs: Path) -> None:
    run = find_runs(runs / "lr_robustness")[0]
    run.verify()
    for path in [*run.path.glob("*/*.parquet"), run.path / "scores.parquet"]:
        for where in np.linspace(0, 1, 20, endpoint=False):
            with harmed(path, path, "flip", where):
                try:
                    run.verify()
                except StoreError as error:
                    assert str(path) in str(error)  # noqa: PT017 (a bit of the mark alone is no damage)
                else:
                    pd.testing.assert_frame_equal(run.read_scores(), run.read_scores())
                    assert b"crc32 over this file: " not in path.read_bytes()


def split_parts(run: RunFolder, kind: str, lasts: list[int], kept: Callable[[int], bool] = lambda step: True) -> None:
    """Store a table of one part as several, which end at these steps, with some of its rows."""
    (whole,) = run.parts(kind)
    table = read_part(whole)
    whole.unlink()
    steps = np.array([step if kept(step) else -1 for step in table["step"].to_pylist()])
    for low, high in zip([-1, *lasts], lasts):
        run.append(kind, dict(zip(table.column_names, table.filter((steps > low) & (steps <= high)).columns)), high)


def read_frame(results: Results, name: str) -> pd.DataFrame:
    found = getattr(results, name)
    return found if isinstance(found, pd.DataFrame) else found()


@pytest.mark.parametrize(
    ("kind", "lasts", "lines"),
    [
        ("dynamics", [9, 15, 20], ["0 to 9", "10 to 15", "16 to 20"]),
        ("steps", [9, 15, 20], ["1 to 9", "10 to 15", "16 to 20"]),
        ("norms", [0, 20], ["0 to 19", "1 to 20"]),
    ],
)
def test_part_that_is_gone_is_named(kind: str, lasts: list, lines: list, tmp_path: Path, capsys) -> None:
    root = make_runs(tmp_path, multipliers=(1.0, 2.0), subjects=("cat",))
    run = find_runs(root / "lr_robustness")[1]
    split_parts(run, kind, lasts)
    run.verify()
    for part, steps in zip(run.parts(kind), lines, strict=True):
        whole = part.read_bytes()
        part.unlink()
        line = f"damaged table {run.path / kind}: rows of steps {steps} are missing"
        names = {"dynamics": ["dynamics", "trajectories", "final_dynamics"]}.get(kind, [kind])
        for read in [*(partial(read_frame, load(root), name) for name in names), run.verify]:
            with pytest.raises(StoreError, match=re.escape(line)):
                read()
        assert ask([SUMS[kind], str(root)]) == 2
        assert capsys.readouterr().err == f"error: {line}\n"
        part.write_bytes(whole)
    assert len(load(root).final_dynamics) == 2 * len(MATRICES)


@pytest.mark.parametrize(
    ("status_of", "cell", "labels", "lasts"),
    [
        ("finished", {"gauge_every": 7}, {}, [6, 13, 15, 20]),
        ("diverged", {}, {}, [4, 9]),
        ("running", {}, {}, [4, 9]),
        ("preempted", {"gauge_every": 3}, {}, [9, 12]),
        ("finished", {"gauge_every": 7, "norms_every": None}, {"watched": True}, [6, 13, 15, 20]),
    ],
)
def test_runs_that_go_on_ended_early_or_read_seldom_have_no_gaps(status_of, cell, labels, lasts, tmp_path) -> None:
    (run,) = find_runs(make_runs(tmp_path, multipliers=(1.0,), subjects=("cat",)) / "lr_robustness")
    record = run.read()
    run.write(record | {"status": status_of, "cell": record["cell"] | cell, "labels": record["labels"] | labels})
    every = cell.get("gauge_every", 1)
    split_parts(run, "dynamics", lasts, lambda step: step % every == 0 or step == 20)
    assert not load(tmp_path).trajectories().empty
    assert not load(tmp_path).final_dynamics.empty
    run.verify()


def test_diverged_run_has_its_rows_up_to_where_it_diverged(tmp_path: Path) -> None:
    (run,) = find_runs(make_runs(tmp_path, multipliers=(1.0,), subjects=("cat",)) / "lr_robustness")
    split_parts(run, "dynamics", [4, 9], lambda step: True)
    run.write(run.read() | {"status": "diverged", "diverged_step": 9})
    run.verify()
    run.write(run.read() | {"diverged_step": 12})
    with pytest.raises(StoreError, match="rows of steps 10 to 12 are missing"):
        run.verify()


# A sweep's own files.


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ended packs, one that is held, one that was sent."""
    made = Sweep(tmp_path_factory.mktemp("sweep") / "lr_robustness")
    for name in ("ended", "ended2", "held", "sent"):
        made.pack(name)
    for name in ("ended", "ended2"):
        made.claim(name, Owner.me(), outcome="done")
        made.end(name, ["finished", "diverged"])
    made.claim("held", FAR)
    made.beat("held", step=3)
    made.send("17", [["sent"]], folder="/nowhere", workers=[])
    for path in made.path.rglob("*.json"):
        write_signed(path, read_json(path))
    return made.path


SWEEP_FILES = (
    "packs/sent.json", "packs/ended.claim-000001.json", "packs/held.beat.json", "packs/ended.ended.json",
    "submissions/*.json",
)  # fmt: skip


@given(pattern=st.sampled_from(SWEEP_FILES), damage=damages)
@often
def test_damaged_file_of_a_sweep_ends_status_well(pattern: str, damage: tuple[str, float], sweep: Path) -> None:
    path = next(sweep.glob(pattern))
    other = path.with_name(path.name.replace("ended.", "ended2.").replace("sent", "held"))
    out, err = io.StringIO(), io.StringIO()
    here = harmed(path, other if other.exists() else path, *damage)
    with here, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = end_well(lambda: status(Options(sweep, once=True)))
    assert "Traceback" not in err.getvalue()
    assert code == 0 or (code == 2 and err.getvalue().splitlines()[-1].startswith("error: ")), err.getvalue()
    assert all(line.isprintable() for line in (out.getvalue() + err.getvalue()).splitlines())


@pytest.mark.parametrize("text", ["", "3", "[]", '{"runs": 3}', "folder"])
def test_damaged_ending_is_named_and_written_anew(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = Sweep(tmp_path / "runs" / "lr_robustness")
    made.pack("p")
    made.claim("p", Owner.me(), outcome="done")
    for name, status_of in (("p-run0", "finished"), ("p-run1", "diverged")):
        RunFolder(made.path / name).write(
            {
                "status": status_of,
                "cell": Cell(method="lora", options="", rank=4, subject="dog", seed=0, steps=9, lr=1.0).to_dict(),
            }
        )
    path = made.files("p").ended
    path.mkdir() if text == "folder" else path.write_text(text)
    assert end_well(lambda: status(Options(made.path, once=True))) == 0
    assert str(path) in capsys.readouterr().err
    with pytest.raises(StoreError, match=path.name):
        planned_runs(made.path)
    if text == "folder":
        path.rmdir()
        path.write_text("{}")
    done = PlanProgress.look(Plan.read(made.path))
    assert done.lines == [f"{path} was written anew from the pack's runs"]
    assert read_json(path)["runs"] == {"p-run0": "finished", "p-run1": "diverged"}
    assert PlanProgress.look(Plan.read(made.path)).lines == []


def test_damaged_file_of_a_plan_says_what_to_do(tmp_path: Path) -> None:
    """Else the same command ends in the same line for ever."""
    made = Sweep(tmp_path / "runs" / "lr_robustness")
    made.pack("p")
    (made.path / "plan.json").write_text("{")
    with pytest.raises(StoreError, match=r"plan\.json: .*remove it, and it is written anew"):
        Plan.read(made.path)
    (made.path / "plan.json").unlink()
    assert list(Plan.read(made.path).packs) == ["p"]
    (made.path / "sweep.json").write_text("{")
    scene = Mock(spec=ResolvedInputs, model_name="pocket", model_hash="0", scorers={})
    with pytest.raises(StoreError, match=r"sweep\.json: .*remove it if the runs are of 'pocket'"):
        open_sweep(made.path.parent, made.path.name, scene)


def test_folder_in_which_nothing_was_planned_belongs_to_nobody(tmp_path: Path) -> None:
    """As a dry run leaves it."""
    first, second = (
        Mock(spec=ResolvedInputs, model_name=name, model_hash=name, scorers={"scorer_hash": name}) for name in "ab"
    )
    folder = open_sweep(tmp_path, "mine", first)
    assert open_sweep(tmp_path, "mine", second) == folder
    assert read_json(folder / "sweep.json")["model"] == "b"
    Sweep(folder).pack("p")
    with pytest.raises(BadInput, match="belongs to model 'b'"):
        open_sweep(tmp_path, "mine", first)


def test_file_in_place_of_the_packs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Sweep(tmp_path / "runs" / "lr_robustness")
    made.pack("p")
    for path in (made.folder.packs / "p.json", made.folder.packs):
        path.unlink() if path.is_file() else path.rmdir()
    made.folder.packs.write_text("x")
    assert end_well(lambda: bool(SweepFolder(made.path).scan())) == 2
    assert capsys.readouterr().err == f"error: {made.folder.packs} cannot be read: Not a directory\n"


@pytest.mark.parametrize("target", ["itself", "/nowhere/else"])
def test_link_to_nothing_is_named_where_a_result_was(target: str, runs: Path) -> None:
    run = find_runs(runs / "lr_robustness")[1]
    for pattern, names_it in (("scores.parquet", True), ("steps/*.parquet", True), ("../plan.json", False)):
        path = next(run.path.glob(pattern), run.path / pattern).resolve()
        whole = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(path if target == "itself" else target)
        try:
            if names_it:
                with pytest.raises(StoreError, match=re.escape(path.name)):
                    show_frames(runs)
            else:
                assert show_frames(runs) == (runs.parent / "right.txt").read_text()
        finally:
            path.unlink()
            if whole is not None:
                path.write_bytes(whole)


@given(damage=damages)
@often
def test_damaged_calibration_is_measured_again(
    damage: tuple[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "calibration.json"
    stored = {"cpu-shape": {"1": {"step_s": 0.5, "peak_mib": 900.0}}}
    path.write_text(json.dumps(sign(stored), indent=1))
    whole = read_costs(path)
    with harmed(path, path, *damage):
        assert read_costs(path) in (whole, {})
    assert whole
    assert to_json(whole["cpu-shape"]).keys() == {"1"}
    assert math.isfinite(whole["cpu-shape"][1].step_s)
