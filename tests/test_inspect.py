"""`--inspect`: format, rank, targets, distances with and without the base, a picture; and what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from adapters import parse_method
from adapters.layer_names import describe_sd15, name_numbers, split_key, to_kohya
from figures.checkpoint_norms import draw
from tests.make_checkpoints import literal_distances, load_unet, make_moved, make_numbered, make_run
from tests.make_pipeline import make_pipeline
from training.base_weights import BaseWeights
from training.export import main

Shown = Callable[..., tuple[str, pd.DataFrame]]


@pytest.fixture
def pipeline(pocket: Path) -> Path:
    """The pocket's pipeline folder."""
    return pocket / "pipeline"


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], draws_warm: None) -> Shown:
    """Inspect a file; what was printed, and the table. The picture is looked at too."""

    def inspect(path: Path, *more: str) -> tuple[str, pd.DataFrame]:
        assert main(["--inspect", str(path), "--out", str(tmp_path / "seen.png"), *more]) == 0
        rows = pd.read_csv(tmp_path / "seen.csv")
        if rows["distance"].notna().any():
            pixels = np.asarray(Image.open(tmp_path / "seen.png").convert("L"))
            assert pixels.std() > 5, "the picture is blank"
        return capsys.readouterr().out, rows

    return inspect


def by_matrix(rows: pd.DataFrame, column: str = "distance") -> dict[str, float]:
    return rows.set_index("matrix")[column].to_dict()


@pytest.mark.parametrize("variant", ["lora", "dora", "delora", "delora:start=zero_b", "etherplus"])
def test_distances_of_a_run_are_those_of_its_merged_weights(
    variant: str, pipeline: Path, tmp_path: Path, shown: Shown
) -> None:
    attached = make_moved(load_unet(pipeline), variant)
    said, rows = shown(make_run(tmp_path, attached, pipeline).path)
    expected = literal_distances(attached)
    assert by_matrix(rows) == pytest.approx(expected, rel=1e-4)
    norms = {path: float(adapter.base.weight.double().norm()) for path, adapter in attached.adapters.items()}
    relative = {path: expected[path] / norms[path] for path in expected}
    assert by_matrix(rows, "distance_rel") == pytest.approx(relative, rel=1e-4)
    block = rows.loc[rows["block"] == "mid_block", "distance"]
    assert f"{np.sqrt((block**2).sum()):.5g}" in next(line for line in said.splitlines() if "unet.mid_block" in line)


@pytest.mark.parametrize("variant", ["lora", "delora:start=zero_b"])
def test_factors_alone_suffice(variant: str, pipeline: Path, tmp_path: Path, shown: Shown) -> None:
    attached = make_moved(load_unet(pipeline), variant)
    _, rows = shown(make_run(tmp_path, attached, pipeline).adapter)
    assert by_matrix(rows) == pytest.approx(literal_distances(attached), rel=1e-4)
    assert rows["base_norm"].isna().all()


def test_table_and_picture_lie_in_the_current_folder(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "downloads", make_moved(load_unet(pipeline), "lora"), pipeline)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["--inspect", str(run.path)]) == 0
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - set(before)
    assert made == {tmp_path / "here" / f"{run.run_id}-norms{suffix}" for suffix in (".csv", ".png")}


def test_doras_distance_asks_for_the_model(pipeline: Path, tmp_path: Path, shown: Shown) -> None:
    run = make_run(tmp_path, make_moved(load_unet(pipeline), "dora"), pipeline)
    said, rows = shown(run.adapter)
    assert "depends on the base model: name it with --model" in said
    assert rows["distance"].isna().all()
    said, rows = shown(run.adapter, "--model", str(pipeline))
    assert rows["distance_rel"].notna().all()


def test_numbers_become_the_paths_of_stable_diffusion(tmp_path: Path, shown: Shown) -> None:
    known = [tuple(map(int, item.split(":")[1:])) for item in describe_sd15()]
    file = tmp_path / "style.safetensors"
    pairs = make_numbered(file, known)
    said, rows = shown(file)
    assert "cloneofsimo/lora" in said
    assert "text tokens <s1> are left out" in said
    assert [f"{r.matrix}:{r.num_out}:{r.num_in}" for r in rows.itertuples()] == describe_sd15()
    for number in range(0, len(pairs), 9):
        up, down = pairs[number]
        assert rows["distance"][number] == pytest.approx(float((up @ down).double().norm()), rel=1e-5)


def test_numbers_follow_another_models_shapes(pipeline: Path, tmp_path: Path, shown: Shown) -> None:
    layers = BaseWeights(pipeline).layers
    shapes = {item.rsplit(":", 2)[0]: tuple(map(int, item.rsplit(":", 2)[1:])) for item in layers}
    in_order = [
        f"{name}.{inner}"
        for name, module in load_unet(pipeline).named_modules()
        if type(module).__name__ == "Attention"
        for inner, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    assert name_numbers([shapes[path] for path in in_order], layers) == in_order
    file = tmp_path / "style.safetensors"
    pairs = make_numbered(file, [shapes[path] for path in in_order])
    _, rows = shown(file, "--model", str(pipeline))
    assert list(rows["matrix"]) == in_order
    for number in range(0, len(pairs), 9):
        up, down = pairs[number]
        assert rows["distance"][number] == pytest.approx(float((up @ down).double().norm()), rel=1e-5)


def test_names_survive_kohyas_underscores() -> None:
    paths = [item.split(":")[0] for item in describe_sd15()]
    paths += ["down_blocks.0.attentions.1.proj_in", "up_blocks.1.resnets.0.time_emb_proj", "mid_block.attentions.0.proj_out",
              "down_blocks.0.downsamplers.0.conv", "up_blocks.3.resnets.2.conv_shortcut"]  # fmt: skip
    for path in paths:
        assert split_key(f"{to_kohya(path)}.lora_down.weight") == (path, "A")
    assert split_key("lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha") == (
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
        "alpha",
    )
    assert split_key("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight") == (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "B",
    )


def test_convolutions_are_measured_but_not_exported(
    tmp_path: Path, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    file, generator = tmp_path / "conv.safetensors", torch.Generator().manual_seed(0)
    up, down = torch.randn(6, 2, 1, 1, generator=generator), torch.randn(2, 5, 3, 3, generator=generator)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    save_file(
        {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(1.0)}, file
    )
    _, rows = shown(file)
    expected = 0.5 * float((up.flatten(1) @ down.flatten(1)).norm())
    assert rows["distance"].tolist() == pytest.approx([expected], rel=1e-6)
    assert main([str(file), "--to", "diffusers"]) == 2
    assert "convolution 'down_blocks.0.resnets.0.conv1'" in capsys.readouterr().err


def test_picture_shows_every_matrix_of_the_unet() -> None:
    rows = pd.DataFrame(
        [("unet", "up_blocks.0", "to_q", 1.0, 0.01), ("unet", "mid_block", "to_v", 2.0, 0.02),
         ("unet", "down_blocks.0", "to_out", 3.0, 0.03), ("unet", "mid_block", "proj", 4.0, 0.04),
         ("text_encoder", "layers.0", "k_proj", 5.0, 0.5)],
        columns=["component", "block", "kind", "distance", "distance_rel"],
    )  # fmt: skip
    (ax,) = draw(rows, "a title").axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["down.0", "mid", "up.0"]
    assert sorted(float(y) for line in ax.lines for y in line.get_ydata()) == pytest.approx([1, 2, 3, 4])
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([3, 3, 1])
    assert "%" in ax.get_ylabel()


# Adapters that strangers trained.

REAL = Path(os.environ.get("PLATEAU_REAL_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))


@pytest.mark.parametrize(("name", "rank", "tokens"), [("lora_disney", 1, True), ("analog_svd_rank4", 4, False)])
def test_strangers_loras_are_measured(name: str, rank: int, tokens: bool, shown: Shown) -> None:
    file = REAL / "wild_loras" / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is not here: set PLATEAU_REAL_DATA to the folder that holds wild_loras/")
    said, rows = shown(file)
    assert ("<s1>" in said) == tokens
    assert set(rows["rank"]) == {rank}
    assert rows["component"].value_counts().to_dict() == {"unet": 144, "text_encoder": 48}
    tensors = load_file(file)
    for number in (0, 5, 143):
        change = tensors[f"unet:{number}:up"].double() @ tensors[f"unet:{number}:down"].double()
        assert rows["distance"][number] == pytest.approx(float(change.norm()), rel=1e-6)


# What is refused.


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, check that it refuses with one line and code 2; returns the line."""

    def front(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return front


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path, refused: Callable[..., str]) -> None:
    for name in ("adapter_model.bin", "style.pt", "model.ckpt"):
        torch.save({"a": torch.zeros(1)}, tmp_path / name)
        line = refused("--inspect", tmp_path / name)
        assert f"{tmp_path / name} is a pickle" in line
        command = line.split("python -c ")[1].strip('"')
        converted = tmp_path / f"{Path(name).stem}.safetensors"
        before = Path.cwd()
        os.chdir(tmp_path)
        try:
            exec(command, {})
        finally:
            os.chdir(before)
        assert load_file(converted)["a"].tolist() == [0]
        converted.unlink()
    assert "is a pickle" in refused("--inspect", tmp_path)


def test_a_pickle_by_another_name_is_not_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "style.safetensors")
    assert "damaged or no safetensors file" in refused("--inspect", tmp_path / "style.safetensors")


def test_a_folder_that_is_no_run(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert f"{tmp_path} holds no adapter" in refused(tmp_path, "--to", "peft")
    assert "no file or folder" in refused(tmp_path / "nowhere", "--to", "peft")


def test_a_run_without_an_adapter(pipeline: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    run = make_run(tmp_path, make_moved(load_unet(pipeline), "lora"), pipeline)
    run.adapter.rename(tmp_path / "elsewhere")
    run.update(status="running")
    assert "is running and holds no adapter" in refused(run.path, "--to", "peft")


@pytest.mark.parametrize(
    ("variant", "to"),
    [
        ("delora", "peft"),
        ("delora", "kohya"),
        ("delora:start=zero_b", "diffusers"),
        ("etherplus", "peft"),
        ("dora:axis=columns", "peft"),
        ("dora:axis=columns", "kohya"),
        ("dora:axis=columns", "diffusers"),
        ("naive", "peft"),
        ("oft", "kohya"),
    ],
)
def test_a_format_that_the_method_does_not_have(
    variant: str, to: str, pipeline: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = make_run(tmp_path, make_moved(load_unet(pipeline), variant), pipeline)
    line = refused(run.path, "--to", to, "--out", tmp_path / "out")
    assert parse_method(variant).label.split(" (")[0] in line
    assert "lora-svd" in line
    assert not (tmp_path / "out").exists()


def test_another_model_names_the_first_matrix(pipeline: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    other = make_pipeline(tmp_path / "other")
    run = make_run(tmp_path, make_moved(load_unet(pipeline), "lora"), pipeline)
    adapted = [row["matrix"] for row in run.read()["matrices"]]
    line = refused(run.path, "--to", "merged", "--model", other)
    assert "of another model" in line
    assert f"matrix {adapted[0]!r}" in line
    line = refused("--inspect", run.adapter, "--model", other)
    assert f"matrix {min(adapted)!r}" in line


@pytest.mark.parametrize("variant", ["lora", "delora:start=zero_b"])
def test_another_model_of_the_same_shapes_is_found_by_its_norms(
    variant: str, pipeline: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    plain, name = load_unet(pipeline), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    with torch.no_grad():
        plain.get_submodule(name).weight.mul_(1.5)
    plain.save_pretrained(other / "unet")
    assert f"matrix {name!r}" in refused(run.path, "--to", "merged", "--model", other)
    if variant != "lora":
        assert f"matrix {name!r}" in refused("--inspect", run.adapter, "--model", other)


def test_unknown_tensors_are_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    assert "lokr_w1' belongs to none of LoRA, DoRA, DeLoRA" in refused("--inspect", tmp_path / "a.safetensors")


def test_half_an_adapter_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    save_file({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    assert "'mid_block.attentions.0.proj_in' lacks factor B" in refused("--inspect", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either a run"),
        (("run",), "--to is missing"),
        (("run", "--to", "onnx"), "onnx"),
        (("run", "--to", "peft", "--rank", "4"), "--rank is 4"),
        (("run", "--to", "lora-svd", "--rank", "0"), "--rank is 0"),
        (("--inspect", "file", "--to", "peft"), "--to is peft"),
        (("run", "--two", "peft"), "--two"),
    ],
)
def test_wrong_flags(arguments: tuple[str, ...], said: str, refused: Callable[..., str]) -> None:
    assert said in refused(*arguments)


def test_rank_beyond_the_smallest_matrix(pipeline: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    run = make_run(tmp_path, make_moved(load_unet(pipeline), "delora"), pipeline)
    assert "allows 1 to" in refused(run.path, "--to", "lora-svd", "--rank", "4096")


def test_nothing_is_overwritten(pipeline: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    run = make_run(tmp_path, make_moved(load_unet(pipeline), "lora"), pipeline)
    (tmp_path / "mine.safetensors").write_bytes(b"precious")
    assert "exists already" in refused(run.path, "--to", "kohya", "--out", tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_bytes() == b"precious"
