"""DreamBooth's published data set: read as it is published, checked, and told what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters import BadInput
from sweeps.grid import choose_subjects
from tests.make_dreambench import REAL, make_dreambench, published_text
from training.tasks import subjects
from training.tasks.dreambench import FILE, PUBLISHED, find_faults, main, read_published


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A whole copy with tiny pictures."""
    return make_dreambench(tmp_path / "dataset")


def test_a_whole_copy_is_whole(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "30 subjects (9 live) of 15 classes, 158 pictures, 25 prompts for objects and 25 for live subjects" in out


def test_what_is_missing_or_broken_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "can" / "00.jpg").unlink()
    (copy / "vase" / "01.jpg").write_bytes(b"no picture")
    for file in (copy / "clock").iterdir():
        file.unlink()
    (copy / "clock").rmdir()
    (copy / FILE).write_text(published_text(24).replace("teapot,teapot\n", ""))
    assert main(["check", str(copy)]) == 2
    said = capsys.readouterr()
    assert said.err.strip() == f"error: {copy} is no whole copy: 6 faults"
    assert said.out.splitlines() == [
        "can: 5 pictures, not 6",
        "clock: its folder is missing",
        "teapot: prompts_and_classes.txt gives it no class",
        next(line for line in said.out.splitlines() if line.startswith(f"vase: {copy / 'vase' / '01.jpg'} is broken")),
        "prompts_and_classes.txt: 24 object prompts, not 25",
        "prompts_and_classes.txt: 24 live prompts, not 25",
    ]


def test_subjects_have_their_published_class_and_prompts(copy: Path) -> None:
    cat, can = (
        subjects.load(copy, name, token="qwe", instance_prompt="a photo of {token} {cls}") for name in ("cat2", "can")
    )
    assert (cat.cls, cat.kind, len(cat.pictures), len(cat.prompts)) == ("cat", "live", 5, 25)
    assert cat.prompts[3] == "a qwe cat in the snow 3"
    assert cat.plain_prompts[3] == "a cat in the snow 3"
    assert cat.instance_prompt == "a photo of qwe cat"
    assert (can.cls, can.kind, can.prompts[0]) == ("can", "object", "a qwe can on a table 0")
    assert len(can.unrelated) >= 4
    assert choose_subjects((str(copy), "30"), 6, "evidence")[1] == sorted(PUBLISHED), "it has no splits to choose by"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Prompts", "has no classes"),
        (
            "subject_name,class\ncat,cat\nObject Prompts\n'a {0} {1}'.format(unique_token, class_token)",
            "has no live subject prompts",
        ),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(BadInput, match=said):
        read_published(tmp_path / FILE)


def test_another_folder_is_no_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "has no prompts_and_classes.txt: give the folder `dataset`" in capsys.readouterr().err


def test_the_real_data_set_is_whole() -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not here: set PLATEAU_DREAMBENCH to a copy of DreamBooth's data set")
    assert find_faults(REAL) == []
    dog = subjects.load(REAL, "dog6", token="qwe", instance_prompt="a photo of {token} {cls}")
    assert dog.prompts[0] == "a qwe dog in the jungle"
    assert "a qwe dog wearing a red hat" in dog.prompts
    plushie = subjects.load(REAL, "wolf_plushie", token="qwe", instance_prompt="a photo of {token} {cls}")
    assert plushie.cls == "stuffed animal"
    assert "a cube shaped qwe stuffed animal" in plushie.prompts
