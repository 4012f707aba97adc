"""The list of protections fits the code, and what takes them out tells what is noticed from what is not."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from adapters import BadInput
from tests.protections import MARK, Protection, read_list, row_of, write_docs
from tests.rounds import told
from tests.take_out import ROOT, Copy, Options, copy_of_checkout, examine, judge, main

FAULTS, PROTECTIONS = read_list()
NODE = "tests/test_x.py::test_x"
PROTECTION = Protection("p", next(iter(FAULTS)), "It protects.", "slurm/store/leases.py", "a | b", "", (NODE,))


def test_protections_can_be_taken_out() -> None:
    texts = {file: (ROOT / file).read_text() for file in {protection.file for protection in PROTECTIONS}}
    trees = {file: ast.dump(ast.parse(text)) for file, text in texts.items()}
    for protection in PROTECTIONS:
        with told(protection.name):
            changed = protection.change(texts[protection.file])
            assert ast.dump(ast.parse(changed)) != trees[protection.file], "it changes nothing"


def test_every_fault_has_a_protection() -> None:
    assert {protection.fault for protection in PROTECTIONS} == FAULTS.keys()
    assert all(protection.tests for protection in PROTECTIONS)


def test_tests_of_protections_exist() -> None:
    named = {node.partition("[")[0] for protection in PROTECTIONS for node in protection.tests}
    written = {
        f"{file}::{function.name}"
        for file in {node.partition("::")[0] for node in named}
        for function in ast.parse((ROOT / file).read_text()).body
        if isinstance(function, ast.FunctionDef)
    }
    assert named <= written


def test_document_shows_every_protection_as_it_is() -> None:
    _, mark, table = (ROOT / "docs" / "reliability.md").read_text().partition(MARK)
    assert mark
    rows = [line.rpartition(" | ")[0] for line in table.splitlines() if line.startswith("| ")][1:]
    assert sorted(rows) == sorted(row_of(protection, FAULTS) for protection in PROTECTIONS)


def outcome(outcome: str, kind: str = "", says: str = "", when: str = "call") -> dict:
    """As the plugin writes it."""
    return {"outcome": outcome, "when": when, "kind": kind, "says": says, "seconds": 0.1}


@pytest.mark.parametrize(
    ("outcomes", "verdict", "says"),
    [
        ({}, "not run", "could not be collected"),
        ({NODE: outcome("passed")}, "not noticed", "still passes"),
        ({f"{NODE}y": outcome("failed", "ValueError")}, "not run", "could not be collected"),
        ({f"{NODE}[1]": outcome("passed"), f"{NODE}[2]": outcome("failed", "E", "no\nmore")}, "noticed", "E: no"),
        ({NODE: outcome("failed", "AssertionError", "assert 1 == 2")}, "noticed", "assert 1 == 2"),
        ({NODE: outcome("failed", "OSError", "no file /a/b/c.json")}, "noticed", "OSError: no file .../c.json"),
        ({NODE: outcome("failed", "ValueError", when="teardown")}, "not noticed", "still passes"),
        ({NODE: outcome("skipped", "Skipped", "no SLURM", "setup")}, "not noticed", "still passes"),
        ({NODE: outcome("failed", "NameError", "claim")}, "not run", "ends in NameError, which says nothing"),
    ],
)
def test_only_an_error_of_the_test_itself_counts(outcomes: dict, verdict: str, says: str) -> None:
    finding = judge(PROTECTION, outcomes)
    assert finding.verdict == verdict
    assert says in finding.says


def test_document_keeps_rows_that_were_not_seen_anew(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Page\n\nWords.\n")
    other = dataclasses.replace(PROTECTION, name="q", protects="It protects too.")
    both = [PROTECTION, other]
    write_docs(path, FAULTS, both, {"p": "p | fell", "q": "q | fell"})
    assert path.read_text().startswith(f"# Page\n\nWords.\n{MARK}\n")
    write_docs(path, FAULTS, both, {"p": "p again"})
    lines = path.read_text().splitlines()
    assert lines[-2].endswith("| p again |")
    assert lines[-1].endswith("| q \\| fell |")
    write_docs(path, FAULTS, [PROTECTION, dataclasses.replace(other, old="c")], {})
    assert path.read_text().splitlines()[-1] == lines[-2], "what was seen of another change says nothing of this one"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no protection is called luck; there are .*exclusive-link"):
        main(Options(("luck",)))


@pytest.mark.slow
def test_taking_out_is_noticed_and_a_change_of_nothing_is_not() -> None:
    link = next(protection for protection in PROTECTIONS if protection.name == "exclusive-link")
    nothing = dataclasses.replace(link, name="nothing", new="os.link(aside, path)  # as before")
    broken = dataclasses.replace(link, name="broken", new="os.link(aside, path")
    strange = dataclasses.replace(link, name="strange", tests=("tests/test_claims.py::test_that_is_not_there",))
    before = (ROOT / link.file).read_text()
    with copy_of_checkout() as root, Copy(root) as copy:
        assert [f.verdict for f in examine([link, nothing, broken], copy)] == ["noticed", "not noticed", "not run"]
        assert [f.verdict for f in examine([strange], copy)] == ["not run"]
        assert (root / link.file).read_text() == before
    assert (ROOT / link.file).read_text() == before
