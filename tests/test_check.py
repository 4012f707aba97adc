"""A method in a file of its own, and the promises that ``adapters.check`` holds it to."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters import BadInput, get_class, parse_method
from adapters.base import Adapter
from adapters.check import PROMISES, check, main, run_promise
from adapters.inject import try_on
from adapters.own_method import SETTINGS
from sweeps import lr_robustness
from tests.make_adapters import make_pack, relative_error
from tests.make_driver import drive_studio
from tests.make_studio import Studio
from tests.warm_program import run_warm
from training.store import RunFolder, find_runs, method_file

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "add_a_method.md"

BROKEN = {
    "distance is ||W - W0||": """
    def readings(self):
        return {"distance": 1.01 * super().readings()["distance"]}
""",
    "replicas do not leak": """
    def weight(self):
        return self.base_weight() + self.B @ self.A.mean(0, keepdim=True)
""",
    "merge equals forward": """
    def low_rank(self):
        return LowRank(self.A, self.B, scale=1.001)
""",
}
"""What is wrong with a method, by the promise that it breaks."""


def make_with(member: str) -> str:
    """A file with a class that has this member."""
    return f"from adapters.base import Adapter\nclass A(Adapter):\n  draw = weight = len\n  {member}\n"


def write_method(folder: Path, more: str = "", name: str = "mine.py") -> Path:
    """A file with a plain low-rank method, and more members of its class."""
    path = folder / name
    path.write_text(
        f"""
import torch
from adapters.base import Adapter
from adapters.low_rank import LowRank


class Mine(Adapter):
    def draw(self, generator):
        a = torch.randn(self.rank, self.shape[1], generator=generator)
        return {{"A": a, "B": torch.zeros(self.shape[0], self.rank)}}

    def weight(self):
        return self.base_weight() + self.B @ self.A
{more}"""
    )
    return path


def write_example(folder: Path) -> Path:
    """The example of the documentation, as a reader would copy it."""
    found = re.search(r"<!-- method: (\S+) -->\n```python\n(.*?)```", PAGE.read_text(), re.S)
    assert found, f"{PAGE} has no example"
    path = folder / found[1]
    path.write_text(found[2])
    return path


# The check.


@pytest.mark.parametrize("options", ["", ":strength=2"])
def test_documented_example_keeps_every_promise(options: str, tmp_path: Path) -> None:
    findings = check(parse_method(f"{write_example(tmp_path)}{options}"))
    assert [finding for finding in findings if not finding.holds] == []
    assert [finding.promise for finding in findings] == list(PROMISES)


def test_example_is_as_long_as_the_page_says_and_bounded(tmp_path: Path) -> None:
    path = write_example(tmp_path)
    assert 30 <= len(path.read_text().splitlines()) <= 50
    _, attached = make_pack(str(path), moved=100.0)
    for adapter in attached.adapters.values():
        ratio = adapter.weight() / adapter.base.weight - 1
        assert float(ratio.detach().abs().max()) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("promise", BROKEN)
def test_a_wrong_method_fails_in_the_right_row(promise: str, tmp_path: Path) -> None:
    spec = parse_method(str(write_method(tmp_path, BROKEN[promise])))
    broken = [finding.promise for finding in check(spec) if not finding.holds]
    expected = {
        "distance is ||W - W0||": ["distance is ||W - W0||"],
        # the others' NaNs arrive as well, the pack does not start alike everywhere, and no gradient is a lone run's
        "replicas do not leak": [
            "replicas do not leak",
            "a NaN stays in its replica",
            "saved and loaded, it is the same",
        ],
        "merge equals forward": ["forward is x W^T", "merge equals forward", "gradient is that of weight()"],
    }[promise]
    assert promise in broken
    assert set(broken) <= set(expected), broken


@pytest.mark.parametrize(
    ("more", "promise"),
    [
        ("    starts_at_base = False\n", "starts at the base, or says so"),
        ("    def draw(self, generator):\n        return {'B': torch.rand(self.shape)}\n", "same seed, same start"),
        ("    def bounds(self):\n        return {'distance': torch.ones(self.A.shape[:-2])}\n", "bound holds"),
        ("    def readings(self):\n        return {'distance': self.B.sum((-2, -1)) / self.A.sum((-2, -1))}\n",
         "readings are finite"),
        ("    def weight(self):\n        return self.base_weight() + torch.einsum('kor,kri->koi', self.B, self.A)\n",
         "a stack is its matrices"),
        ("    def forward(self, x):\n        self.base.weight.data += 1e-9\n        return super().forward(x)\n"
         "    def low_rank(self):\n        return LowRank(self.A, self.B)\n", "only the adapter moves"),
        ("    def low_rank(self):\n        return LowRank(self.A.detach(), self.B)\n", "gradient is that of weight()"),
        ("    def weight(self):\n        return (self.base_weight() + self.B.detach() @ self.A).float()\n",
         "gradient is that of differences"),
        ("    def forward(self, x):\n        return super().forward(x).float()\n"
         "    def low_rank(self):\n        return LowRank(self.A, self.B)\n", "dtype is kept"),
    ],
    ids=lambda value: value if not value.startswith(" ") else "",
)  # fmt: skip
def test_each_promise_can_be_broken(more: str, promise: str, tmp_path: Path) -> None:
    finding = run_promise(promise, parse_method(str(write_method(tmp_path, more))))
    assert not finding.holds, finding


def test_table_says_what_is_derived_and_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_method(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "derives a slow forward and a slow distance" in out
    assert f"{len(PROMISES)} of {len(PROMISES)} promises hold" in out
    assert main([str(write_method(tmp_path, BROKEN["merge equals forward"]))]) == 1
    rows = {line[: line.index("  ")]: line for line in capsys.readouterr().out.splitlines() if "  " in line}
    assert "FAILS" in rows["merge equals forward"]
    assert "holds" in rows["detach restores"]
    assert "holds" in rows["distance is ||W - W0||"]


def test_check_runs_as_a_program_on_a_registered_method() -> None:
    done = run_warm(["-m", "adapters.check", "etherplus:sides=one"], ROOT, os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "promises hold" in done.stdout
    assert "derives" not in done.stdout


# What is derived.


def test_derived_forward_and_distance_equal_the_fast_ones(tmp_path: Path) -> None:
    """The same mathematics with and without a fast path: LoRA with alpha = r, seeds and all."""
    fast = write_method(tmp_path, "    def low_rank(self):\n        return LowRank(self.A, self.B)\n", "fast.py")
    assert get_class(parse_method(str(fast)).name).derives() == ["distance"]
    assert get_class("lora").derives() == get_class("etherplus").derives() == []
    packs = [make_pack(str(path), moved=0.3) for path in (write_method(tmp_path), fast)]
    x = torch.randn(6, 4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    context = torch.randn(6, 4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    slow_out, fast_out = (model(x, context) for model, _ in packs)
    assert relative_error(slow_out, fast_out) < 1e-12
    adapter = packs[0][1].adapters["attn1.to_q"]
    assert isinstance(adapter, Adapter)
    torch.testing.assert_close(adapter.distance(), (adapter.B @ adapter.A).flatten(1).norm(dim=1).detach())
    assert adapter.ROLES == {"A": "factors", "B": "factors"}


# Names, identity and bad input.


def test_an_edited_file_is_another_method_and_a_moved_one_is_not(tmp_path: Path) -> None:
    path = write_method(tmp_path)
    first = parse_method(str(path)).name
    assert re.fullmatch(r"mine@[0-9a-f]{10}", first)
    (tmp_path / "elsewhere").mkdir()
    assert parse_method(str(write_method(tmp_path / "elsewhere"))).name == first
    path.write_text(path.read_text() + "\n# another version\n")
    assert parse_method(str(path)).name != first
    assert get_class(first).__name__ == "Mine"


def look() -> list[object]:
    """What a file may have changed for the whole process."""
    states = torch.initial_seed(), random.getstate()[1][:-1], np.random.get_state()[1].tolist()
    return [*(get() for get, _ in SETTINGS.values()), *states]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("torch.set_default_dtype(torch.float64)", "torch's default dtype to torch.float64"),
        ("torch.set_default_device('meta')", "torch's default device to meta"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", "torch's number of threads to"),
        ("torch.set_grad_enabled(False)", "torch's gradients to False"),
        ("torch.use_deterministic_algorithms(True)", "torch's deterministic algorithms to True"),
        ("torch.set_float32_matmul_precision('medium')", "torch's precision of products to medium"),
        ("os.chdir('/')", "the current folder to /"),
        ("torch.manual_seed(7); random.seed(7); numpy.random.seed(7)", ""),
        ("torch.set_grad_enabled(False); raise RuntimeError('no')", "raises at import: RuntimeError"),
    ],
)
def test_a_file_that_is_read_changes_nothing_else(line: str, said: str, tmp_path: Path) -> None:
    path = write_method(tmp_path)
    path.write_text(f"{path.read_text()}\nimport os, random, numpy, torch\n{line}\n")
    random.seed(3)
    random.random()  # makes 624 numbers: of these the checker of types takes some
    before = look()
    if said:
        with pytest.raises(BadInput, match=said):
            parse_method(str(path))
    else:
        assert "@" in parse_method(str(path)).name
    assert look() == before


def test_options_of_an_own_method_are_parsed_like_those_of_others(tmp_path: Path) -> None:
    path = write_example(tmp_path)
    assert parse_method(str(path)).canonical == "strength=0.5"
    assert parse_method(f"{path}:strength=2").label.endswith("(strength=2)")
    with pytest.raises(BadInput, match=r"option 'strength' of method 'wave@\w+' is '-1', not one of: 0.5, a positive"):
        parse_method(f"{path}:strength=-1")
    with pytest.raises(BadInput, match=r"has no option 'size' \(options: strength\)"):
        parse_method(f"{path}:size=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "must hold exactly one subclass of adapters.base.Adapter, has: none"),
        ("from adapters.lora import Lora\n", "has: none"),
        ("from adapters.base import Adapter\nclass A(Adapter): pass\nclass B(Adapter): pass\n", "has: A, B"),
        (
            "from adapters.base import Adapter\nclass A(Adapter): pass\n",
            r"class A of method file .* defines no draw\(\)",
        ),
        ("\nraise RuntimeError('no\\nluck')\n", r"raises at import: RuntimeError: no luck \(line 2\)"),
        ("def broken(:\n", "raises at import: SyntaxError"),
        ("import there_is_no_such_thing\n", "raises at import: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(3)\n", "raises at import: SystemExit: 3"),
        *(
            (make_with(f"{table} = {value}"), f"{table} of class A of method file .* allowed: a dictionary as")
            for table, value in (
                ("OPTIONS", None),
                ("OPTIONS", ["a"]),
                ("OPTIONS", {"a": None}),
                ("OPTIONS", {"a": ()}),
                ("OPTIONS", {"a": "bc"}),
                ("OPTIONS", {"a": (None,)}),
                ("OPTIONS", {"a,b": (1,)}),
                ("OPTIONS", {1: (1,)}),
                ("ROLES", None),
                ("ROLES", {"A": "factor"}),
            )
        ),
    ],
)
def test_files_that_hold_no_method_are_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    for _ in range(2):  # the second time too
        with pytest.raises(BadInput, match=message) as caught:
            parse_method(str(path))
        assert "\n" not in str(caught.value)
        assert "wrong.py" in str(caught.value)


def test_a_missing_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/nowhere/mine.py"]) == 2
    assert (
        capsys.readouterr().err == "error: method file '/nowhere/mine.py' cannot be read: No such file or directory\n"
    )
    assert main([]) == main(["--help"]) == 2


def test_a_method_that_does_not_fit_is_refused_before_any_work() -> None:
    with pytest.raises(BadInput, match=r"blocks=5 does not divide matrix 'attn1\.to_q' of 8 x 12"):
        try_on(parse_method("etherplus:blocks=5"), {"attn1.to_q": (8, 12), "attn2.to_q": (8, 12)}, 2)


# Through the front door.


def test_an_own_method_trains_in_packs_and_is_found_again(studio: Studio, tmp_path: Path) -> None:
    runs, path = tmp_path / "runs", write_example(tmp_path)
    flags = ("--base-lr", "1e-2", "--multipliers", "1", "2", "--pack-size", "2", "--steps", "6")
    done = drive_studio(studio, lr_robustness, runs, "--method", str(path), *flags)
    assert done.code == 0, done.err
    name = parse_method(str(path)).name
    assert method_file(runs / "lr_robustness", name).read_bytes() == path.read_bytes()
    trained = [run for run in find_runs(runs) if run.run_id.startswith("wave@")]
    assert {run.read()["provenance"]["pack_size"] for run in trained} == {2}
    dynamics = RunFolder(trained[0].path).read_dynamics()
    assert dynamics.loc[dynamics["step"] == 0, "distance"].max() == 0
    assert dynamics.loc[dynamics["step"] == 6, "distance"].min() > 0
    assert (runs / "lr_robustness" / f"pictures_{name}.png").exists()
    path.rename(tmp_path / "moved.py")
    (tmp_path / "moved.py").rename(tmp_path / "wave.py")
    again = drive_studio(studio, lr_robustness, runs, "--method", str(tmp_path / "wave.py"), *flags, "--dry-run")
    assert "4 cells: 4 done, 0 to train" in again.out, again.err
