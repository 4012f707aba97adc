"""Where a model comes from: the pocket, a folder, or the hub, of which one revision is asked for."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from adapters import BadInput
from training.tasks.pipeline import POCKET_MODEL, locate


@pytest.mark.parametrize(("model", "asked"), [("org/name", ("org/name", None)), ("org/name@v2", ("org/name", "v2"))])
def test_a_revision_of_the_hub_is_asked_for(
    model: str, asked: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def download(
        name: str, *, revision: str | None, repo_type: str, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        assert repo_type == "model"
        seen.append((name, revision))
        assert not any(pattern.endswith((".bin", ".ckpt", ".pt")) for pattern in allow_patterns), "only safetensors"
        return str(POCKET_MODEL)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(model) == POCKET_MODEL
    assert seen == [asked]


def test_a_folder_may_have_the_sign_of_a_revision_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine@home").symlink_to(POCKET_MODEL)
    assert locate(str(tmp_path / "mine@home")) == POCKET_MODEL


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nothing", "no model folder 'nothing'; give 'pocket', a diffusers pipeline folder, or a hub id ORG/NAME"),
        ("./org/name", "no model folder './org/name'"),
        ("org/name@v9", "model 'org/name@v9' is no folder, and not whole in the hub's cache, "),
    ],
)
def test_what_is_not_there_is_one_line(model: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        locate(model)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
