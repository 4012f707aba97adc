"""A runs folder from a stranger is data: its paths stay inside it, its names only print, and damage is one line."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from adapters import BadInput
from analysis.load import load
from analysis.query import main as ask
from analysis.tables import to_latex, to_markdown
from slurm.status.__main__ import Options, main
from slurm.status.table import draw, plain_lines
from slurm.store.leases import Owner
from slurm.store.pack_states import PackState, survey
from slurm.store.sweep_state import SweepState
from slurm.submit import cancel
from slurm.worker.run import main as run_job
from sweeps.plan import Plan
from tests.make_runs import Maker
from tests.make_sweep import Job, Slurm, Sweep
from training.store import RunFolder, StoreError, method_file
from training.whole_files import CRC, join_inside

EVIL = "\x1b]0;title\x07\x1b[2J"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """One sweep of one pack, beside a folder that is nobody's business."""
    made = Sweep(tmp_path / "runs" / "s")
    made.pack("p0")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "run.json").write_text("damaged, and not to be set aside")
    return made


def change(path: Path, **fields: Any) -> None:
    """Change some fields of a file as somebody does who knows of its checksum."""
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: value for key, value in said.items() if key != CRC} | fields), encoding="utf-8")


def spec_with(sweep: Sweep, **fields: Any) -> Path:
    """The pack's specification, with other fields in its first run."""
    path = sweep.files("p0").spec
    spec = json.loads(path.read_text())
    spec["runs"][0] |= fields
    path.write_text(json.dumps(spec))
    return path


@pytest.mark.parametrize("place", ["../../victim", "/etc", "a/../../../victim", "..", "link/victim"])
def test_run_outside_its_sweep_is_neither_read_nor_renamed(
    sweep: Sweep, tmp_path: Path, place: str, capsys: pytest.CaptureFixture
) -> None:
    (sweep.path / "link").symlink_to(tmp_path)
    path = spec_with(sweep, folder=place)
    before = sorted(tmp_path.rglob("*"))
    assert run_job([str(path)]) == 2
    assert "inside" in capsys.readouterr().err
    with pytest.raises(StoreError, match="inside"):
        Plan.read(sweep.path).run("p0-run0")
    if place == "link/victim":
        survey(sweep.folder)  # looks at no run of a pack that nobody has begun
    else:
        with pytest.raises(StoreError, match="inside"):
            survey(sweep.folder)
    with pytest.raises(StoreError, match="inside"):
        method_file(sweep.path, "../../victim/x@1")
    assert [
        path for path in sorted(tmp_path.rglob("*")) if ".claim" not in path.name and ".beat" not in path.name
    ] == before


@pytest.mark.parametrize(
    "fields",
    [{"run_id": "a/b"}, {"cell": 3}, {"cell": {"steps": "x", "method": "lora"}}, {"cell": {"method": "lora"}}, {"labels": []},
     {"cell": {"method": "../x", "steps": 1}}, {"cell": {"method": EVIL, "steps": 1}}, {"run_id": None}],
)  # fmt: skip
def test_damaged_specification_is_one_line(sweep: Sweep, fields: dict, capsys: pytest.CaptureFixture) -> None:
    path = spec_with(sweep, **fields)
    assert run_job([str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert f"damaged file {path}: runs[0]." in line
    with pytest.raises(BadInput, match="damaged file"):
        main(Options(sweep.path, once=True))
    path.write_text("[" * 5000)
    with pytest.raises(BadInput, match="damaged file"):
        main(Options(sweep.path, once=True))


@pytest.mark.parametrize(
    "fields",
    [{"status": "done"}, {"cell": [1]}, {"cell": {"rank": "many"}}, {"cell": {"subject": EVIL}}, {"labels": {"model": "a\nb"}},
     {"labels": {"x\x1b": 1}}, {"matrices": [3]}, {"seconds": float("nan")}, {"provenance": "me"}, {"sweep": EVIL},
     {"status": None}, {"cell": {"lr": {}}}],
)  # fmt: skip
def test_damaged_run_is_one_line_when_results_are_read(tmp_path: Path, fields: dict) -> None:
    Maker(tmp_path, subjects=("cat",), multipliers=(1.0,), dynamics=False).write()
    path = sorted(tmp_path.rglob("run.json"))[0]
    change(path, **fields)
    with pytest.raises(BadInput) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"damaged file {path}: ")
    assert str(caught.value).isprintable()


def test_pictures_outside_the_run_are_not_read(tmp_path: Path) -> None:
    Maker(tmp_path, subjects=("cat",), multipliers=(1.0,), dynamics=False, pictures=True).write()
    for index in tmp_path.rglob("index.json"):
        rows = RunFolder(index.parents[1]).images()
        change(index, images=[row | {"file": "../../../secret.png"} for row in rows])
    with pytest.raises(BadInput, match="not a path that stays inside its folder"):
        load(tmp_path).images()


def test_claims_endings_and_records_of_another_form_count_as_damaged(sweep: Sweep, tmp_path: Path) -> None:
    sweep.put(sweep.files("p0").ended, {"runs": {"../x": 3}})
    for more in ({"tasks": 3}, {"job": "--user=root"}, {"workers": [{"pid": 1}]}, {"token": "../x"}, {"folder": 3}):
        sweep.send("5", [["p0"]])
        change(sweep.folder.submissions / "t1.json", **more)
        assert [state.state for state in survey(sweep.folder, Slurm())] == ["planned"]


def test_log_outside_the_sweep_is_not_shown(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "victim" / "5_0_log.err").write_text("secret")
    sweep.send("5", [["p0"]], folder=str(tmp_path / "victim"))
    (state,) = survey(sweep.folder, Slurm({"5": Job("FAILED")}))
    assert "secret" not in state.error
    inside = sweep.folder.submissions / ".private-ada"
    inside.mkdir()
    (inside / "5_0_log.err").write_text(f"setup failed {EVIL}")
    sweep.send("5", [["p0"]], folder="/where/it/was/before/.private-ada")
    (state,) = survey(sweep.folder, Slurm({"5": Job("FAILED")}))
    assert state.error == r"job 5: FAILED: setup failed \x1b]0;title\x07\x1b[2J"


def test_worker_of_a_record_that_is_no_process_is_not_signalled(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of minus one, the system makes every process of the user."""
    killed = []
    monkeypatch.setattr(cancel.os, "kill", lambda *about: killed.append(about))
    me = dataclasses.asdict(dataclasses.replace(Owner.me(), pid=-1, started=0))
    sweep.send(None, [["p0"]], executor="local", workers=[me])
    main(Options(sweep.path, cancel=True))
    assert (-1, signal.SIGTERM) not in killed


def test_status_prints_names_as_they_are(capsys: pytest.CaptureFixture) -> None:
    pack = PackState("x[/b][red]", "failed", 1, {"failed": 1}, error=f"{EVIL}\nfake line", host=EVIL, phase="[/]")
    running = dataclasses.replace(pack, state="running", counts={"running": 1})
    sweep = SweepState(Path(f"/runs/{EVIL}"), [pack, running])
    Console().print(draw([sweep], "[/note]", 40))
    print("\n".join(plain_lines([sweep], "")))
    said = capsys.readouterr().out
    assert "x[/b][red]" in said
    assert "\x1b" not in said
    assert "\x07" not in said
    assert not [line for line in said.splitlines() if line.startswith("fake line")]


def test_tables_hold_names_in_their_cells() -> None:
    frame = pd.DataFrame({"method": ["[x](y)|<b>\\input{/etc/passwd}\n" + EVIL, "*"], "n": [1, 2]})
    (*_, row, _) = to_markdown(frame).splitlines()
    assert r"[x]\(y)\|&lt;b>" in row
    assert row.replace(r"\|", "").count("|") == 3
    lines = to_latex(frame).splitlines()
    assert lines[4].startswith(
        r"{}[x](y)|\textless{}b\textgreater{}\textbackslash{}input\{/etc/passwd\} \textbackslash{}x1b"
    )
    assert lines[5].startswith("{}*")
    assert len(lines) == 8


def test_answer_in_sql_prints_names_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Maker(tmp_path, subjects=("cat",), multipliers=(1.0,), dynamics=False).write()
    for form in ("table", "csv"):
        assert ask(["SELECT chr(27) || '[2J' AS a", str(tmp_path), "--format", form]) == 0
        assert "\x1b" not in capsys.readouterr().out


def test_links_are_followed_only_where_they_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "s" / "001").mkdir(parents=True)
    (tmp_path / "s" / "in").symlink_to(tmp_path / "s" / "001")
    (tmp_path / "s" / "out").symlink_to(tmp_path)
    assert join_inside(tmp_path / "s", "in/a") == tmp_path / "s" / "in" / "a"
    with pytest.raises(StoreError, match="does not lie inside"):
        join_inside(tmp_path / "s", "out/a")
