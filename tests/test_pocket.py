"""The pocket: loads by the ordinary calls, draws what it is asked for, and keeps its splits and its vendors apart."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from adapters.inject import find_targets
from tools.pocket.captions import SIZES, STYLES
from tools.pocket.pictures import HELD_OUT_VENDOR, TRAIN_VENDORS, PictureSet, read_classes
from tools.pocket.quality import subject_cosines, subject_photographs
from tools.pocket.scenes import COMPANIONS, make_scenes
from tools.pocket.studio import open_studio
from training.tasks.subjects import load as load_subject
from training.tasks.subjects import read_table


@pytest.fixture(scope="module")
def unet(pocket: Path) -> nn.Module:
    """The shipped U-Net."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(pocket / "pipeline" / "unet")


def test_weights_are_safetensors_in_half_precision_below_40_mb(pocket: Path) -> None:
    files = [path for path in pocket.rglob("*") if path.suffix in {".safetensors", ".bin", ".pt", ".ckpt", ".pkl"}]
    assert len(files) == 5
    assert {path.suffix for path in files} == {".safetensors"}
    assert sum(path.stat().st_size for path in files) < 40e6
    for path in files:
        with safe_open(path, framework="pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, path


def test_pipeline_samples_by_the_ordinary_call(pocket: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(pocket / "pipeline")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    draw = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "np"}
    captions = ["a mushroom on a blue background", "a mushroom on a yellow background"]
    seeds = [torch.Generator().manual_seed(0) for _ in captions]
    blue, yellow = pipe(captions, generator=seeds, **draw).images
    assert blue.shape == (64, 64, 3)
    corners = [np.median(image[:6].reshape(-1, 3), axis=0) for image in (blue, yellow)]
    assert corners[0][2] > corners[0][0] + 0.2, "the blue background is not blue"
    assert corners[1][0] > corners[1][2] + 0.2, "the yellow background is not yellow"


def test_attention_is_named_as_in_stable_diffusion(unet: nn.Module) -> None:
    paths = list(find_targets(unet))
    assert {path.split(".")[0] for path in paths} == {"down_blocks", "mid_block", "up_blocks"}
    kinds = {".".join(path.split(".transformer_blocks.0.")[1].split(".")) for path in paths}
    assert kinds == {f"{a}.{kind}" for a in ("attn1", "attn2") for kind in ("to_q", "to_k", "to_v", "to_out.0")}
    assert all(
        re.search(r"attentions\.\d\.transformer_blocks\.0\.attn[12]\.to_(q|k|v|out\.0)$", path) for path in paths
    )


def test_the_text_tower_is_that_of_the_clip(pocket: Path) -> None:
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

    clip = CLIPModel.from_pretrained(pocket / "clip")
    alone = CLIPTextModel.from_pretrained(pocket / "pipeline" / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(pocket / "pipeline" / "tokenizer")
    assert tokenizer.tokenize("a sks unicorn") == ["a</w>", "sks</w>", "unicorn</w>"]
    ids = tokenizer("a sks unicorn in the snow", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        one, two = clip.text_model(input_ids=ids).last_hidden_state, alone(input_ids=ids).last_hidden_state
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def names_of(table: dict[str, dict[str, str]], split: str) -> list[str]:
    """The subjects of a split."""
    return [name for name, row in table.items() if row["split"] == split]


def test_splits_are_of_the_promised_sizes(pocket: Path) -> None:
    table = read_table(pocket / "subjects")
    assert Counter(row["split"] for row in table.values()) == {"tuning": 12, "evidence": 40, "test": 13}
    assert {row["kind"] for row in table.values()} == {"live", "object"}


def test_drivers_never_touch_a_split_that_is_not_theirs(pocket: Path) -> None:
    from adapters import BadInput
    from sweeps.grid import choose_subjects

    table = read_table(pocket / "subjects")
    for split in ("evidence", "tuning"):
        assert set(choose_subjects((), 99, split)[1]) == set(names_of(table, split))
    count = len(names_of(table, "evidence"))
    with pytest.raises(BadInput, match=f"{count} subjects of split 'evidence'"):
        choose_subjects((str(count + 1),), 6, "evidence")


def test_the_first_subjects_have_most_to_learn_and_differ_in_kind(pocket: Path) -> None:
    from sweeps.grid import choose_subjects

    table = read_table(pocket / "subjects")
    likeness = {name: float(table[name]["base_dino"]) for name in names_of(table, "evidence")}
    assert choose_subjects(("1",), 6, "evidence")[1] == [min(likeness, key=lambda name: likeness[name])]
    groups = {table[name]["group"] for name in likeness}
    for name in choose_subjects((str(len(groups)),), 6, "evidence")[1]:
        assert likeness[name] == min(likeness[n] for n in likeness if table[n]["group"] == table[name]["group"])
        groups.remove(table[name]["group"])
    assert not groups


def test_the_order_of_subjects_is_a_tables_own_and_no_part_of_a_runs_identity(tmp_path: Path) -> None:
    from adapters import BadInput
    from sweeps.grid import choose_subjects

    for name in "abc":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "subjects.csv").write_text("subject,class,kind,split\na,a,live,\n".replace("live,", "live,evidence"))
    one = load_subject(tmp_path, "a", token="sks", instance_prompt="a {token} {cls}").content_hash()
    rows = "subject,class,kind,split,order\na,a,live,evidence,2\nb,b,live,evidence,\nc,c,live,evidence,1\n"
    (tmp_path / "subjects.csv").write_text(rows)
    assert choose_subjects((f"{tmp_path}/", "3"), 6, "evidence")[1] == ["c", "a", "b"]
    assert load_subject(tmp_path, "a", token="sks", instance_prompt="a {token} {cls}").content_hash() == one
    (tmp_path / "subjects.csv").write_text(rows.replace("evidence,2", "evidence,second"))
    with pytest.raises(BadInput, match="order of a is 'second'; allowed: whole numbers"):
        choose_subjects((f"{tmp_path}/", "3"), 6, "evidence")


def test_the_commands_of_make_evidence_name_the_subjects_of_the_committed_runs(pocket: Path) -> None:
    from analysis import load
    from sweeps.grid import choose_subjects
    from training.tasks.pipeline import content_hash

    shipped, tuning = content_hash(pocket / "pipeline"), names_of(read_table(pocket / "subjects"), "tuning")

    root = Path(__file__).resolve().parents[1]
    shown = subprocess.run(["make", "-n", "evidence"], cwd=root, capture_output=True, text=True, check=True).stdout
    lines = [line for line in shown.replace("\\\n", " ").splitlines() if "--docs docs/results/" in line]
    assert len(lines) == 15
    for words in map(shlex.split, lines):
        names = list(itertools.takewhile(lambda w: not w.startswith("--"), words[words.index("--subjects") + 1 :]))
        docs = root / words[words.index("--docs") + 1]
        if not (docs / "runs.parquet").exists():
            continue
        runs = load(docs).runs
        if set(runs["model_hash"]) == {shipped}:  # those of the first edition name their own subjects
            planned, run = choose_subjects(names, 0, "evidence")[1], set(runs["subject"]) - set(tuning)
            assert run == set(planned[: len(run)]), f"{docs.name}: not the first subjects of the plan"


def test_every_subject_has_five_different_photographs(pocket: Path) -> None:
    for name in read_table(pocket / "subjects"):
        files = sorted((pocket / "subjects" / name).iterdir())
        assert [path.name for path in files] == [f"{i:02d}.png" for i in range(5)]
        pictures = [Image.open(path) for path in files]
        assert {picture.size for picture in pictures} == {(64, 64)}
        assert len({picture.tobytes() for picture in pictures}) == 5


def test_prompts_are_compositions_that_the_base_was_trained_on(pocket: Path) -> None:
    prompts = json.loads((pocket / "subjects" / "prompts.json").read_text())
    styles = "|".join(re.escape(style) for style in STYLES.values())
    sizes = "|".join(size for size in SIZES if size)
    companions, scenes = "|".join(COMPANIONS), "|".join(make_scenes())
    grammar = rf"(?:(?:{styles}) )?an? (?:(?:{sizes}) )?dog(?: with (?:{companions}))? (?:{scenes})"
    trained = {row["class"] for row in read_table(pocket / "subjects").values() if row["split"] != "test"}
    others = "|".join(name for name, _ in read_classes().values() if name not in trained)
    for prompt in prompts.pop("unrelated"):
        assert re.fullmatch(grammar.replace("dog", f"(?:{others})"), prompt), prompt
    for templates in prompts.values():
        assert len(templates) >= 12
        assert len(set(templates)) == len(templates)
        for template in templates:
            assert template.count("{token} {cls}") == 1
            assert re.fullmatch(grammar, template.replace("{token} ", "").format(cls="dog")), template


def test_the_held_out_vendor_trains_nothing() -> None:
    assert HELD_OUT_VENDOR not in TRAIN_VENDORS
    codes = np.array(["2764", "2b50", "1f535"] * 3)
    vendors = np.repeat(np.array([*TRAIN_VENDORS, HELD_OUT_VENDOR]), 3)
    pixels = np.zeros((9, 64, 64, 4), np.uint8)
    pixels[vendors == HELD_OUT_VENDOR] = 255
    pictures = PictureSet(pixels, np.array(["heart", "star", "ball"] * 3), vendors, codes, np.ones(9, bool))
    for only_classes in (False, True):
        studio = open_studio(pictures, only_classes=only_classes)
        assert set(studio.pictures.vendors) == set(TRAIN_VENDORS)
        assert not studio.rgba.any()


def test_dino_tells_the_subjects_apart_as_the_card_says(pocket: Path) -> None:
    from transformers import ViTModel

    dino = ViTModel.from_pretrained(pocket / "dino", add_pooling_layer=False).eval()
    photographs, names = subject_photographs()
    with torch.no_grad():
        found = nn.functional.normalize(dino(pixel_values=photographs).last_hidden_state[:, 0], dim=-1)
    measured = subject_cosines(found, found, len(names))
    said = json.loads((pocket / "qualities.json").read_text())["dino"]
    for key in ("nearest_same_subject", "real_to_real", "other_subject"):
        assert measured[key] == pytest.approx(said[key], abs=0.02), key


def test_vae_keeps_a_photograph_as_the_card_says(pocket: Path) -> None:
    from diffusers import AutoencoderKL

    from tools.pocket.quality import measure_vae

    vae = AutoencoderKL.from_pretrained(pocket / "pipeline" / "vae").eval()
    photographs, _ = subject_photographs()
    said = json.loads((pocket / "qualities.json").read_text())["vae"]["psnr_db"]
    assert measure_vae(vae, photographs[::5])[0]["psnr_db"] == pytest.approx(said, abs=1.5)


def test_the_sheet_of_finetunes_shows_the_committed_pictures() -> None:
    from tools.pocket.finetunes import METHODS, SHEET, rows
    from tools.pocket.sheets import make_sheet

    root = Path(__file__).resolve().parents[1]
    pictures = rows(root / "docs" / "results")
    wanted = make_sheet(np.stack(pictures), 1 + 2 * (1 + len(METHODS))).quantize(256, dither=Image.Dither.NONE)
    np.testing.assert_array_equal(
        np.asarray(Image.open(root / SHEET).convert("RGB")), np.asarray(wanted.convert("RGB"))
    )
