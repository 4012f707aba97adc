"""Models and scorers from the hub, against a small server that answers as the hub does: what cannot be had is one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

from adapters import BadInput
from tests.make_hub import COMMIT, Hub, serve_hub, turn_to
from training.tasks import hub, pipeline, scorers
from training.tasks.pipeline import POCKET_MODEL


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of `org/held` on a hub; its cache on this side is an empty folder."""
    folder = tmp_path / "held"
    folder.mkdir()
    with serve_hub({"org/held": folder}) as address:
        turn_to(address, tmp_path / "cache", monkeypatch)
        yield folder


def refusal(locate, *arguments: object) -> str:
    """The line with which something is refused."""
    with pytest.raises(BadInput) as caught:
        locate(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("name", ["org/gated", f"org/gated@{COMMIT}"])
def test_gated_says_what_to_accept(name: str) -> None:
    line = f"{name!r} is gated: accept its licence on its page of the hub, then run `hf auth login`, or set HF_TOKEN"
    assert refusal(pipeline.locate, name) == f"model {line}"
    assert refusal(scorers.locate, name, Path("pocket")) == f"scorer {line}"


@pytest.mark.usefixtures("held")
def test_missing_says_so() -> None:
    line = refusal(pipeline.locate, "org/missing@v1")
    assert line.startswith("model 'org/missing@v1' is no folder, and not on the hub, or private there: check its name")


@pytest.mark.usefixtures("held")
def test_missing_revision_says_so() -> None:
    assert "has no such revision on the hub" in refusal(pipeline.locate, "org/norevision@v9")


@pytest.mark.usefixtures("held")
def test_offline_says_where_it_looked_and_where_to_read(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refusal(pipeline.locate, f"org/held@{COMMIT}")
    assert f"cache, {constants.HF_HUB_CACHE}; HF_HUB_OFFLINE is set: fetch it where there is a network" in line
    assert (root / hub.GUIDE).is_file()
    assert "scorer 'org/held' is no folder" in refusal(scorers.locate, "org/held", Path("pocket"))


def test_model_comes_without_the_copies_that_nobody_reads(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(POCKET_MODEL, held, dirs_exist_ok=True)
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors", "old.bin"):
        (held / "unet" / name).write_bytes(b"not wanted")
    (held / "v1-5-pruned.safetensors").write_bytes(b"not wanted")
    folder = pipeline.locate("org/held")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {str(path.relative_to(POCKET_MODEL)) for path in POCKET_MODEL.rglob("*") if path.is_file()}
    assert pipeline.content_hash(folder) == pipeline.content_hash(POCKET_MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pipeline.locate("org/held") == folder, "it is in the cache now"


def test_scorer_is_fetched_when_a_sweep_is_planned_and_keeps_its_name(held: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (held / name).write_bytes(b"{}")
    assert scorers.locate("org/held", Path("pocket")) == "org/held", "runs scored by it keep their hash"
    assert any(path.endswith("/model.safetensors") for path in Hub.asked)
    folder = Path(scorers.locate(f"org/held@{COMMIT}", Path("pocket")))
    assert (folder / "model.safetensors").read_bytes() == b"{}"


def test_scorer_without_safetensors_is_not_read(held: Path, tmp_path: Path) -> None:
    (held / "pytorch_model.bin").write_bytes(b"a pickle")
    line = "has no *.safetensors, and nothing else is read: docs/real_runs.md says how to convert it"
    assert refusal(scorers.locate, "org/held", Path("pocket")) == f"scorer 'org/held' of the hub {line}"
    assert not any("pytorch_model" in path for path in Hub.asked)
    assert refusal(scorers.locate, str(held), Path("pocket")) == f"scorer folder {held} {line}"
