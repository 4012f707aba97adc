"""What every test stands on: two threads, no network, no display, a cache of the suite's own, the pocket, a studio."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import jaxtyping
import pytest

if TYPE_CHECKING:
    from tests.make_grid import Grid
    from tests.make_studio import Studio
    from tools.slurm_node.files import LocalSlurm

ROOT = Path(__file__).resolve().parents[1]

# Set before anything imports torch, transformers or matplotlib, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A suite under `nohup`, or in a script's background, inherits ignored signals; the programs that it starts should not.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# One cache folder for the suite: workers inherit it, so that a model's speed is measured once, and none of the user's. The list
# of fonts takes seconds to make: it stays there too when a test gives a program a cache of its own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="plateau-tests-cache-")
    os.environ["MPLCONFIGDIR"] = os.path.join(os.environ["XDG_CACHE_HOME"], "matplotlib")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


WHOLE_PROGRAMS = {"studio", "rehearsal", "place", "account"}
"""Fixtures of tests that run programs on a tiny model; those that take it apart (`parts`) test the code within."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes where tests are of the code that annotates them; a step of training takes twice as long with that."""
    fixtures = set(getattr(item, "fixturenames", ()))
    is_whole = bool(WHOLE_PROGRAMS & fixtures) and "parts" not in fixtures
    jaxtyping.config.update("jaxtyping_disable", is_whole or item.get_closest_marker("unchecked") is not None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def pocket() -> Path:
    """The pocket's folder, with ``pipeline/ clip/ dino/ subjects/``; it is part of the repository, so never skipped."""
    folder = ROOT / "training" / "pocket"
    assert (folder / "pipeline" / "model_index.json").is_file(), f"{folder}: the pocket's weights are missing"
    return folder


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator["LocalSlurm"]:
    """A real SLURM, up until the session ends; a test that asks for it carries the marker `slurm`."""
    from tests import make_cluster

    make_cluster.require_slurm()
    with make_cluster.make_cluster(make_cluster.name_folder(), *make_cluster.FLAGS) as cluster:
        yield cluster


@pytest.fixture(scope="session", autouse=True)
def warm_workers() -> Iterator[None]:
    """Workers that end with the driver are forks of a process that has loaded what takes long to load and is not ours."""
    from slurm.worker import pool
    from tests.warm_program import warm_up

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "start_process", warm_up(pool))
        yield


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> "Studio":
    """A tiny pipeline with scorers and subjects."""
    from tests.make_studio import build_studio

    return build_studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="session")
def undisturbed(studio: "Studio", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that all faults must end in, trained inline without any."""
    from tests.make_grid import MULTIPLIERS, Grid, cells

    grid = Grid(studio, tmp_path_factory.mktemp("undisturbed"), cells(MULTIPLIERS))
    grid.submit(cluster="inline")
    return grid.runs


@pytest.fixture
def draws_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """`training.export --inspect` draws in a fork of a process that has loaded matplotlib."""
    from tests.warm_program import run_warm
    from training import inspect_adapter

    warm = SimpleNamespace(run=lambda words, **_: run_warm(words[1:], ROOT, os.environ))
    monkeypatch.setattr(inspect_adapter, "subprocess", warm)


@pytest.fixture
def grid(slurm_cluster: "LocalSlurm", studio: "Studio", tmp_path: Path) -> "Grid":
    """Two cells on SLURM, whose steps take no longer than they must."""
    from tests.make_grid import MULTIPLIERS, Grid, cells

    made = Grid(studio, tmp_path / "runs", cells(MULTIPLIERS[:2]))
    made.words()
    made.mood()
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it aloud when tests were skipped because there is no SLURM, or no disk can be made."""
    reasons = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if "NO SLURM" in reason or "NO DISK" in reason):
        terminalreporter.write_line(reason.removeprefix("Skipped: "), yellow=True, bold=True)
