"""Folders of strangers' pictures: what is taken, left out, and said; runs of another reading are not taken up."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from adapters import BadInput
from sweeps import lr_robustness
from sweeps.grid import ResolvedInputs
from tests.make_driver import Driven, drive_studio
from tests.make_pictures import make_scene, make_turned, to_file
from tests.make_studio import Studio, load_subject
from training.pack import Setting
from training.store import find_runs
from training.tasks.picture_folder import describe_remarks, read_folder
from training.tasks.picture_remarks import describe_inputs
from training.tasks.pipeline import POCKET
from training.tasks.subjects import Subject, load, names


def old_hash(subject: Subject, num_drift_prompts: int = 0) -> str:
    """What a subject was known by when pictures went in as their bytes alone."""
    said = [subject.cls, subject.prompts, subject.instance_prompt, *subject.unrelated[:num_drift_prompts]]
    digest = hashlib.sha256(json.dumps(said).encode())
    for path in subject.pictures:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two subjects: a mug as a telephone keeps it, and a cup of ordinary pictures."""
    for name in ("mug", "cup"):
        (tmp_path / "own" / name).mkdir(parents=True)
    make_turned(tmp_path / "own" / "mug" / "a.jpg", 6)
    make_scene().save(tmp_path / "own" / "cup" / "a.png")
    return tmp_path / "own"


def load_own(folder: Path, name: str) -> Subject:
    return load(folder, name, token="sks", instance_prompt="a {token} {cls}")


def test_a_hash_changes_where_the_reading_did_and_nowhere_else(own: Path, studio: Studio) -> None:
    mug, cup = (load_own(own, name) for name in ("mug", "cup"))
    assert mug.readings == ("upright",)
    assert mug.content_hash() != old_hash(mug)
    assert cup.content_hash(2) == old_hash(cup, 2)
    ordinary = load_subject(studio, "dog")
    assert ordinary.content_hash() == old_hash(ordinary)
    make_turned(own / "mug" / "a.jpg", 1)
    again = load_own(own, "mug")
    assert again.content_hash() == old_hash(again)


def test_hashes_of_the_pocket_are_those_of_earlier_versions(pocket: Path) -> None:
    subject = load(pocket / "subjects", "lion", token="sks", instance_prompt="a {token} {cls}")
    assert subject.readings == ("",) * len(subject.pictures)
    assert subject.content_hash() == old_hash(subject)


def test_runs_of_another_reading_are_trained_again(own: Path, studio: Studio, tmp_path: Path) -> None:
    """As the earlier code left them: named by the bytes of the pictures alone, trained on what lay sideways in the file."""

    def drive() -> Driven:
        rates = ("--method", "lora", "--multipliers", "1")
        return drive_studio(studio, lr_robustness, tmp_path / "runs", *rates, "--subjects", str(own), "mug", "cup")

    with mock.patch.object(Subject, "content_hash", old_hash):
        assert drive().code == 0
    own_picture = tmp_path / "runs" / "lr_robustness" / "subjects" / "mug.png"
    shutil.copy(own_picture.with_name("cup.png"), own_picture)
    before = {run.path.name for run in find_runs(tmp_path / "runs" / "lr_robustness")}
    driven = drive()
    assert driven.code == 0, driven.err
    assert "2 cells: 1 done, 1 to train" in driven.out
    assert driven.out.count("pictures turned upright as their EXIF says: mug/a.jpg\n") == 1
    new = {run.path.name for run in find_runs(tmp_path / "runs" / "lr_robustness")} - before
    assert {run_id.split("-")[-2] for run_id in new} == {"mug"}
    assert len(new) == 2, "the base model is scored against the upright picture too"
    assert own_picture.read_bytes() != own_picture.with_name("cup.png").read_bytes(), "the sheets show the old picture"


def test_a_plan_says_what_becomes_of_pictures(own: Path) -> None:
    (own / "mug" / "b\x1b[31m.txt").write_text("a mug")
    Image.new("RGBA", (20, 20)).save(own / "cup" / "b.png")
    assert describe_inputs(scene_of(own, "mug", "cup")) == [
        "the pocket's model, DINO and CLIP know 65 emoji and nothing else: what comes out says nothing about photographs",
        "pictures turned upright as their EXIF says: mug/a.jpg",
        "pictures put on white where they are transparent: cup/b.png",
        "left out: mug/b\\x1b[31m.txt (captions are not read)",
    ]


def scene_of(folder: Path, *wanted: str, **places: Path) -> ResolvedInputs:
    """Subjects with the pocket's model and scorers, or with other `model`, `dino` and `clip`."""
    parts = {name: str(places.get(name, POCKET / place)) for name, place in PARTS.items()}
    setting = Setting(**parts, subjects=str(folder), token="sks", instance_prompt="a {token} {cls}", runs="runs")
    subjects = [load_own(folder, name) for name in wanted]
    return ResolvedInputs(setting, {"num_prompts": 2, "num_drift_prompts": 0}, subjects, "pocket")


PARTS = {"model": "pipeline", "dino": "dino", "clip": "clip"}


def test_the_pocket_says_what_it_knows(own: Path, studio: Studio, pocket: Path) -> None:
    others = {name: studio.folder / place for name, place in PARTS.items()}
    alone = describe_inputs(scene_of(own, "cup", **others | {"dino": pocket / "dino"}))
    assert any(line.startswith("the pocket's DINO knows 65 emoji") for line in alone)
    assert not any("emoji" in line for line in describe_inputs(scene_of(own, "cup", **others)))
    assert describe_inputs(scene_of(pocket / "subjects", "lion")) == []


FORMATS = {
    "a.avif": "AVIF",
    "b.BMP": "BMP",
    "c.gif": "GIF",
    "d.tiff": "TIFF",
    "e.jfif": "JPEG",
    "f.webp": "WEBP",
    "g b.PNG": "PNG",
}


def test_what_pillow_reads_is_read_and_the_rest_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "mug"
    folder.mkdir()
    for name, form in FORMATS.items():
        (folder / name).write_bytes(to_file(make_scene(), form))
    for junk in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini"):
        (folder / junk).write_bytes(b"junk")
    (folder / "__MACOSX").mkdir()
    (folder / "more").mkdir()
    (folder / "h.avif").write_bytes(b"x")
    (folder / "i.HEIC").write_bytes(b"x" * 100)
    (folder / "j.cr2").write_bytes(b"x")
    (folder / "metadata.jsonl").write_text("{}")
    found = read_folder(folder)
    assert [path.name for path in found.paths] == sorted(FORMATS)
    assert set(found.readings) == {""}
    (line,) = describe_remarks(found.remarks)
    for said in (
        "h.avif (its content is of no",
        "metadata.jsonl (captions are",
        "j.cr2 (no picture)",
        "more (a folder)",
    ):
        assert f"mug/{said}" in line
    if find_spec("pillow_heif") is None:
        assert "mug/i.HEIC (HEIC needs `pip install pillow-heif`)" in line
    assert not any(junk in line for junk in ("DS_Store", "_a.png", "Thumbs", "desktop", "MACOSX"))


def test_long_lists_are_counted() -> None:
    remarks = [("left out (captions are not read)", f"mug/{number}.txt") for number in range(9)]
    assert describe_remarks(remarks)[0].startswith("left out: mug/0.txt, ")
    assert describe_remarks(remarks)[0].endswith("mug/4.txt and 4 more (captions are not read)")


def test_folders_that_systems_leave_are_no_subjects(own: Path) -> None:
    for junk in ("__MACOSX", ".cache", "@eaDir"):
        (own / junk).mkdir()
    assert names(own) == ["cup", "mug"]


def test_a_folder_without_pictures_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "mug" / "train").mkdir(parents=True)
    with pytest.raises(
        BadInput, match=r"no pictures in .*mug \(left out: mug/train \(a folder\)\); expected files such as"
    ):
        load_own(tmp_path, "mug")


def test_a_picture_that_is_broken_stops_everything(own: Path) -> None:
    (own / "cup" / "b.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"cup/b.png is broken or not a picture"):
        load_own(own, "cup")


@pytest.mark.parametrize("name", ["1", "001", "1_2"])
def test_a_folder_whose_name_says_no_class_is_refused(name: str, own: Path) -> None:
    (own / "cup").rename(own / name)
    with pytest.raises(BadInput, match=rf"subject '{name}': its name says no class; call the folder as in dog_{name}"):
        load_own(own, name)
    (own / "subjects.csv").write_text(f"subject,class,kind,split\n{name},cup,object,evidence\n")
    assert load_own(own, name).cls == "cup"
