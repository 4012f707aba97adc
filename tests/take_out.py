"""Take a protection out of a copy of the checkout, and see the test that watches it fail.

    python -m tests.take_out                       # all of tests/protections.toml
    python -m tests.take_out exclusive-link        # one of them
    python -m tests.take_out --no-slurm            # without those that only a real SLURM notices
    python -m tests.take_out --docs docs           # also puts what was seen into docs/reliability.md

The tests first pass as the code stands. Then, for each protection, the smallest change that takes it out is made in the
copy, and each of its tests has to fail where it is set up or called, not because a module cannot be loaded. The exit code
is 1 if a test does not fail. The checkout itself is never touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from adapters import BadInput
from tests.protections import Protection, read_list, write_docs
from training.command_line import run_program

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 600.0  # for the tests of one protection
NOT_SEEN = ("SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError")


@dataclass(frozen=True)
class Finding:
    """What came of taking a protection out: "noticed", "not noticed" or "not run", and what the test or pytest said."""

    protection: Protection
    verdict: str
    says: str = ""


@dataclass(frozen=True)
class Options:
    """Flags."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Protections to take out; none: all."""
    slurm: bool = True
    """Also those that only a real SLURM notices (root, Debian packages)."""
    docs: Path | None = None
    """Folder whose reliability.md gets the table; rows of protections that were not asked for stay if nothing changed."""


def main(options: Options) -> int:
    """Take out what is asked for; 1 if anything was not noticed or could not be run.

    Raises:
        BadInput: for an unknown name, or if a protection is not where the list says.
    """
    faults, known = read_list()
    if unknown := sorted(set(options.names) - {p.name for p in known}):
        raise BadInput(f"no protection is called {unknown[0]}; there are {', '.join(p.name for p in known)}")
    chosen = [p for p in known if (p.name in options.names or not options.names) and (options.slurm or not p.slurm)]
    with copy_of_checkout() as root, Copy(root) as copy:
        findings = []
        for finding in examine(chosen, copy):
            findings.append(finding)
            if options.docs is not None:  # at once, so that what was seen stays if this is interrupted
                said = {f.protection.name: f.says for f in findings if f.verdict == "noticed"}
                write_docs(options.docs / "reliability.md", faults, known, said)
    return summarise(findings)


# Running.


@contextmanager
def copy_of_checkout() -> Iterator[Path]:
    """A folder with every file that git has or would take, as it stands."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="plateau-taken-out-") as scratch:
        copy = Path(scratch).resolve() / "checkout"
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        yield copy


class Copy:
    """A copy of the checkout, and a process that runs its tests.

    Args:
        root: the copy.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.written, self.log = root, root.parent / "outcomes.json", root.parent / "log"
        self._stamp = int(time.time())
        self._pytest = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_pytest"], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._pytest.send_signal(signal.SIGINT)
        self._pytest.communicate()

    def put(self, file: str, text: str) -> None:
        """Change a file, with a time of its own: by time and size Python knows which compiled code is stale."""
        self._stamp += 2
        (self.root / file).write_text(text)
        os.utime(self.root / file, (self._stamp, self._stamp))

    def test(self, nodes: Sequence[str], limit_s: float = LIMIT_S) -> dict[str, dict]:
        """Run tests with the copy's packages; returns how each ended (`tests/outcomes.py`), {} if pytest broke down.

        Raises:
            BadInput: if a module was loaded from elsewhere, or if no tests can be run.
            TimeoutError: if they did not end in time.
        """
        assert self._pytest.stdin is not None
        assert self._pytest.stdout is not None
        self.written.unlink(missing_ok=True)
        self._pytest.stdin.write(json.dumps([list(nodes), str(self.written), str(self.log), limit_s]) + "\n")
        self._pytest.stdin.flush()
        answer = self._pytest.stdout.readline()
        if not answer:
            raise BadInput(f"tests.warm_pytest has ended; {sys.executable} -m tests.warm_pytest says why")
        if json.loads(answer) is None:
            raise TimeoutError
        found = json.loads(self.written.read_text()) if self.written.exists() else {"tests": {}, "modules": []}
        if strange := [file for file in found["modules"] if not Path(file).is_relative_to(self.root)]:
            raise BadInput(f"{strange[0]} was loaded, which is not in the copy {self.root}")
        return found["tests"]


def examine(chosen: Sequence[Protection], copy: Copy) -> Iterator[Finding]:
    """Take out one protection after the other, file of tests by file, whose tests have to pass as the code stands first."""
    before: dict[str, dict] = {}
    began, chosen = time.monotonic(), sorted(chosen, key=lambda protection: protection.first_file)
    for number, protection in enumerate(chosen):
        if number == 0 or protection.first_file != chosen[number - 1].first_file:
            same = [node for p in chosen if p.first_file == protection.first_file for node in p.tests]
            tell(f"{protection.first_file}: {len(set(same))} tests have to pass first")
            try:
                before = copy.test(list(dict.fromkeys(same)), LIMIT_S * len(same))
            except TimeoutError:
                before = {}
        if broken := [node for node in protection.tests if ends(before, node) != {"passed"}]:
            finding = Finding(protection, "not run", f"{broken[0]} does not pass as the code stands")
        else:
            finding = take_out(protection, copy)
        left_s = (time.monotonic() - began) / (number + 1) * (len(chosen) - number - 1)
        tell(f"[{number + 1}/{len(chosen)}, {left_s / 60:.0f} min left] {describe(finding)}")
        yield finding


def take_out(protection: Protection, copy: Copy) -> Finding:
    """Run the tests of one protection without it; the copy is as before afterwards."""
    text = (copy.root / protection.file).read_text()
    copy.put(protection.file, protection.change(text))
    try:
        return judge(protection, copy.test(protection.tests))
    except TimeoutError:
        return Finding(protection, "not noticed", f"the tests did not end within {LIMIT_S:g} s")
    finally:
        copy.put(protection.file, text)


def items(outcomes: dict[str, dict], node: str) -> list[dict]:
    """How the tests of a node ended: a test, or one for each of its parameters."""
    return [outcome for name, outcome in outcomes.items() if name == node or name.startswith(f"{node}[")]


def ends(outcomes: dict[str, dict], node: str) -> set[str]:
    """In which ways they ended."""
    return {outcome["outcome"] for outcome in items(outcomes, node)}


def judge(protection: Protection, outcomes: dict[str, dict]) -> Finding:
    """Whether every test of a protection has failed, by an error of its own."""
    says = ""
    for node in protection.tests:
        if not (found := items(outcomes, node)):
            return Finding(protection, "not run", f"{node} could not be collected")
        failed = [o for o in found if o["outcome"] == "failed" and o["when"] in ("setup", "call")]
        if strange := next((o["kind"] for o in failed if o["kind"] in NOT_SEEN), None):
            return Finding(protection, "not run", f"{node} ends in {strange}, which says nothing")
        if not failed:
            return Finding(protection, "not noticed", f"{node} still passes")
        says = says or shorten(failed[0]["kind"], failed[0]["says"])
    return Finding(protection, "noticed", says)


def shorten(kind: str, text: str) -> str:
    """The first line of an error, without folders that are gone by now."""
    first = re.sub(r"/[\w./@+-]*/(?=[\w.])", ".../", (text.strip().splitlines() or [""])[0])
    first = re.sub(r"\b[0-9a-f]{10,}\b|0x[0-9a-f]+", "...", first)
    whole = first if kind == "AssertionError" and first else f"{kind}: {first}".removesuffix(": ")
    return whole if len(whole) <= 120 else f"{whole[:117]}..."


def tell(line: str) -> None:
    """Progress, where it does not mix with the table."""
    print(line, file=sys.stderr, flush=True)


def describe(finding: Finding) -> str:
    """A finding in one line."""
    return f"{finding.protection.name}: {finding.verdict}: {finding.says}"


def summarise(findings: Sequence[Finding]) -> int:
    """Print what came of it; returns the exit code."""
    width = max((len(finding.protection.name) for finding in findings), default=0)
    for finding in findings:
        print(f"{finding.protection.name:<{width}}  {finding.verdict:<11}  {finding.says}")
    seen = sum(finding.verdict == "noticed" for finding in findings)
    print(f"{seen} of {len(findings)} protections were noticed when they were taken out")
    return 0 if seen == len(findings) else 1


if __name__ == "__main__":
    sys.exit(run_program(Options, main, __doc__ or ""))
