"""A sweep's first answer: the first subject's packs come first, and whole subjects are drawn while the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.errors import BadInput
from slurm.worker.run import Setting
from sweeps.early import EarlyAnswers
from sweeps.grid import LabelledCell
from sweeps.plan import Plan
from sweeps.progress import PlanProgress
from training.cell import Cell
from training.tasks.kinds import PICTURES

SETTING = Setting("model", "dino", "clip", "subjects", "sks", "a photo", "runs")
SUBJECTS = ("fox", "ant", "owl", "bat")


def make_cell(method: str, subject: str, lr: float) -> LabelledCell:
    """One cell."""
    rank = 0 if method == "base" else 4
    return LabelledCell(Cell(method=method, options="", rank=rank, subject=subject, seed=0, steps=10, lr=lr), "x", {})


@pytest.fixture
def cells() -> list[LabelledCell]:
    """The base model and two methods at seven rates on four subjects, method by method, as drivers ask for them."""
    base = [make_cell("base", subject, 0.0) for subject in SUBJECTS]
    grid = [make_cell(m, s, 0.001 * 2**k) for m in ("lora", "delora") for s in SUBJECTS for k in range(7)]
    return base + grid


@pytest.fixture
def plan(tmp_path: Path, cells: list[LabelledCell]) -> Plan:
    """Their plan for two workers and packs of up to 21."""
    (tmp_path / "packs").mkdir()
    plan = Plan.read(tmp_path)
    plan.add(cells, SETTING, 21, 2, early=True)
    return plan


@pytest.fixture
def sweep(plan: Plan, cells: list[LabelledCell]) -> Any:
    """What `EarlyAnswers` reads of a sweep."""
    return SimpleNamespace(plan=plan, ours=cells, subjects=list(SUBJECTS), inputs=SimpleNamespace(kind=PICTURES))


def subjects_of(plan: Plan, pack: str) -> set[str]:
    """The subjects of a pack's cells."""
    return {row["cell"]["subject"] for row in json.loads(plan.spec(pack).read_text())["runs"]}


def end(plan: Plan, packs: list[str]) -> None:
    """Let packs have ended."""
    for pack in packs:
        ending = {"pack": pack, "runs": {run_id: "finished" for _, run_id in plan.packs[pack]}, "turns": 1}
        ending |= {"seconds": 1.0, "reason": None, "errors": {}}
        plan.spec(pack).with_name(f"{pack}.ended.json").write_text(json.dumps(ending))


def ordered(plan: Plan, cells: list[LabelledCell]) -> list[str]:
    """The packs in the order in which they are run."""
    return PlanProgress.look(plan).todo({p.cell.identity(): SUBJECTS.index(p.cell.subject) for p in cells})


def test_the_first_subjects_packs_are_its_own_and_first_one_a_worker(plan: Plan, cells: list[LabelledCell]) -> None:
    packs = ordered(plan, cells)
    whose = [subjects_of(plan, pack) for pack in packs]
    assert whose[:5] == [{"fox"}] * 5, "two packs of each method, and the base model"
    assert packs[4].startswith("base-"), "which is short"
    assert sorted(len(plan.packs[pack]) for pack in packs[:5]) == [1, 3, 3, 4, 4]
    assert all("fox" not in subjects for subjects in whose[5:])
    assert packs[-1].startswith("base-")


def test_without_a_hurry_packs_are_as_few_as_can_be(tmp_path: Path, cells: list[LabelledCell]) -> None:
    (tmp_path / "later" / "packs").mkdir(parents=True)
    plan = Plan.read(tmp_path / "later")
    plan.add(cells, SETTING, 28, 1)
    assert sorted(len(rows) for rows in plan.packs.values()) == [4, 28, 28]


def test_a_subject_is_drawn_once_it_is_whole(plan: Plan, cells: list[LabelledCell], sweep: Any) -> None:
    drawn: list[tuple[list[str], str]] = []

    def draw(subjects: list[str], said: str) -> Path:
        drawn.append((list(subjects), said))
        return Path("report.html")

    early, packs = EarlyAnswers(sweep, draw), ordered(plan, cells)
    end(plan, packs[:4])
    assert early.look(1) == []
    early.close()
    assert not drawn, "the base model's score is missing"
    end(plan, packs[4:5])
    early.look(2)
    early.close()
    assert early.look(3) == ["drawn so far, 1 of 4 subjects: report.html"]
    early.close()
    ((subjects, said),) = drawn
    assert subjects == ["fox"]
    assert said.startswith("Provisional, 1 of 4 subjects: the sweep goes on.")


def test_drawing_takes_a_small_share_of_the_time(plan: Plan, cells: list[LabelledCell], sweep: Any) -> None:
    drawn: list[int] = []
    early, packs = (
        EarlyAnswers(sweep, lambda subjects, said: drawn.append(len(subjects)) or Path("x")),
        ordered(plan, cells),
    )
    end(plan, packs[:5])
    early.look(4)
    early.close()
    early._next_s = float("inf")  # as after a drawing that took long
    end(plan, [pack for pack in packs if "bat" not in subjects_of(plan, pack)])
    early.look(5)
    early.close()
    assert drawn == [1]


def test_a_stopped_sweep_is_drawn_as_far_as_it_came(plan: Plan, cells: list[LabelledCell], sweep: Any) -> None:
    early = EarlyAnswers(sweep, lambda subjects, said: Path(f"{len(subjects)}.html"))
    assert early.stop() == ""
    end(plan, ordered(plan, cells)[:5])
    assert early.stop() == "drawn so far, 1 of 4 subjects: 1.html"


def test_what_cannot_be_drawn_stops_nothing(plan: Plan, cells: list[LabelledCell], sweep: Any) -> None:
    def draw(subjects: list[str], said: str) -> Path:
        raise BadInput("no space left")

    early = EarlyAnswers(sweep, draw)
    end(plan, ordered(plan, cells)[:5])
    early.look(6)
    early.close()
    assert early.look(7) == ["nothing could be drawn of 1 of 4 subjects yet: no space left"]
