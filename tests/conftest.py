"""What every test stands on: two threads, no network, no display, and the pocket pipeline's folder."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Set before anything imports torch, transformers or matplotlib, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


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
