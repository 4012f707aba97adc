"""What a change of structure must not change, as text files: helps, a seeded sweep's results, the bytes of docs/results.

    python -m tests.golden OUT    # before and after a move, on one machine; then: diff -r BEFORE AFTER

Docs/results is hashed as it lies there: `make figures` first.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.compare_runs import rows, weights
from tests.make_studio import build_studio
from training.cell import BASE
from training.store import RunFolder, find_runs

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adapters", "analysis", "benchmarks", "figures", "slurm", "sweeps", "tools", "training")
WORKERS = {
    "slurm/worker/run.py",
    "training/probe.py",
    "tools/slurm_node/__main__.py",
    "slurm/task.py",
}
METHODS = ("lora", "dora", "delora", "ether_plus")


def main() -> None:
    """Write all of it below the folder named."""
    out = Path(sys.argv[1])
    for name, text in [*helps(), ("sweep", sweep()), ("results", results())]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).with_suffix(".txt").write_text(text, encoding="utf-8")


def helps() -> Iterator[tuple[str, str]]:
    """Name and text of the help of every program."""
    for path in sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if '__name__ == "__main__"' not in path.read_text(encoding="utf-8") or name in WORKERS:
            continue
        module = name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
        words = [name] if name.startswith("sweeps/") else ["-m", module]
        done = subprocess.run(
            [sys.executable, *words, "--help"], cwd=ROOT, env=surroundings(), capture_output=True, text=True
        )
        yield f"help/{module}", f"{done.returncode}\n{done.stdout}{done.stderr}".replace(str(ROOT), "ROOT")


def surroundings() -> dict[str, str]:
    """One thread, no network, wide lines."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def sweep() -> str:
    """A line for every table and adapter of a seeded sweep: names, shapes and hashes."""
    with tempfile.TemporaryDirectory() as folder:
        studio, lines = build_studio(Path(folder) / "studio"), []
        for driver, words in (("lr_robustness", ("--method", *METHODS)), ("rank_robustness", ()), ("weight_norms", ())):
            runs = Path(folder) / driver
            words = (*words, "--pack-size", "4", "--multipliers", "1", "8") if driver != "weight_norms" else words
            done = studio.run(runs, "--seeds", "0", "1", *words, driver=driver)
            said = re.sub(
                re.escape(folder), "FOLDER", done.stdout if not done.returncode else done.stdout + done.stderr
            )
            lines += [f"{driver}: exit code {done.returncode}", *(said.splitlines() if done.returncode else ())]
            lines += [line for run in sorted(find_runs(runs), key=lambda run: run.run_id) for line in describe(run)]
    return "\n".join(lines) + "\n"


def describe(run: RunFolder) -> Iterator[str]:
    """A run's tables and tensors."""
    yield f"{run.run_id} {run.status()}"
    for kind, table in rows(run).items():
        yield f"  {kind} {table.shape} {digest(table.to_csv(index=False).encode())} {','.join(table.columns)}"
    for name, tensor in {} if run.read()["cell"]["method"] == BASE else weights(run).items():
        yield f"  {name} {tuple(tensor.shape)} {digest(tensor.to(torch.float64).numpy().tobytes())}"


def results() -> str:
    """A line for every file of docs/results."""
    files = sorted(path for path in (ROOT / "docs" / "results").rglob("*") if path.is_file())
    return "".join(f"{digest(path.read_bytes())} {path.relative_to(ROOT)}\n" for path in files)


def digest(content: bytes) -> str:
    """The beginning of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    main()
