"""A plugin of pytest that writes down how every test ended, and where our packages came from.

    PLATEAU_OUTCOMES=FILE.json python -m pytest -p tests.outcomes ...

The file holds {"tests": {node: {"outcome", "when", "kind", "says", "seconds"}}, "modules": [files of ours]}: the outcome
is "passed", "failed" or "skipped", `when` the phase ("setup", "call", "teardown") and `kind` the error's class.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("adapters", "training", "slurm", "sweeps", "analysis", "figures", "benchmarks", "tools", "tests")
_tests: dict[str, dict] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Iterator[None]:  # the hook's result passes through
    """Note a phase that failed or was skipped, or the last one."""
    report = yield
    known = _tests.get(item.nodeid)
    if known is None or known["outcome"] == "passed":
        error = call.excinfo
        _tests[item.nodeid] = {
            "outcome": report.outcome,
            "when": report.when,
            "kind": error.typename if error else "",
            "says": str(error.value) if error else "",
            "seconds": round(call.duration + (known["seconds"] if known else 0.0), 2),
        }
    return report


def pytest_sessionfinish() -> None:
    """Write the file."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in ROOMS]
    files = sorted(str(module.__file__) for module in ours if getattr(module, "__file__", None))
    Path(os.environ["PLATEAU_OUTCOMES"]).write_text(json.dumps({"tests": _tests, "modules": files}), encoding="utf-8")
