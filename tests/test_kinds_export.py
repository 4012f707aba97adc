"""Runs of Stable Diffusion 2.1 and XL, taken out: diffusers' own pipelines and PEFT compute with them what was trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters.attach_checkpoint import attach_checkpoint
from adapters.layer_names import split_key, to_kohya
from adapters.read_checkpoint import read_checkpoint
from tests.make_adapters import relative_error
from tests.make_checkpoints import load_unet
from tests.make_kinds import KINDS, make_sdxl_like
from tests.make_pipeline import make_scorers, make_subjects
from tests.test_loop import make_cell, train
from training.base_weights import BaseWeights
from training.export import main
from training.measure import measure
from training.open_adapter import open_adapter
from training.store import RunFolder
from training.tasks import pipeline as pipelines
from training.tasks.sampling import sample, start_noise

PROMPTS = ["a photo of a sks dog", "a red cup on the beach"]
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model folder, loaded, and trained runs of it by method."""

    folder: Path
    pipeline: pipelines.Pipeline
    runs: dict[str, RunFolder]

    def adapted(self, method: str) -> pipelines.Pipeline:
        """The pipeline with the run's adapter in a U-Net of its own."""
        unet = load_unet(self.folder)
        attach_checkpoint(unet, open_adapter(self.runs[method].path, str(self.folder)).checkpoint)
        return dataclasses.replace(self.pipeline, unet=unet)

    def predict(self, unet: Any) -> torch.Tensor:
        """What a U-Net says of two noisy latents."""
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        pipe = dataclasses.replace(self.pipeline, unet=unet.eval())
        with torch.no_grad():
            return pipe.predict(noisy, torch.tensor([7, 501]), pipe.encode_text(PROMPTS))

    def export(self, method: str, to: str, out: Path, *more: str) -> Path:
        """A run in another format."""
        assert (
            main([str(self.runs[method].path), "--to", to, "--out", str(out), "--model", str(self.folder), *more]) == 0
        )
        return out


@pytest.fixture(scope="module", params=["sd21", "sdxl"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The second of two cells of a pack, for each of three methods, after two steps at a large rate."""
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param](folder / "pipeline")
    make_scorers(folder)
    make_subjects(folder / "subjects")
    pipe = pipelines.load(folder / "pipeline", CPU)
    rates = {"lora:alpha=3.5": 0.1, "dora": 0.1, "delora": 0.3}
    runs = {
        method: train(folder, (pipe, None), folder, [make_cell(method, steps=2, lr=lr) for lr in (rate / 2, rate)])[1]
        for method, rate in rates.items()
    }
    return Trained(folder / "pipeline", pipe, runs)


@pytest.mark.parametrize("method", ["lora:alpha=3.5", "dora"])
def test_peft_opens_the_folder(method: str, trained: Trained, tmp_path: Path) -> None:
    expected = trained.predict(trained.adapted(method).unet)
    assert relative_error(trained.predict(load_unet(trained.folder)), expected) > 1e-3, "the adapter does something"
    folder = trained.export(method, "peft", tmp_path / "out")
    assert (
        relative_error(trained.predict(PeftModel.from_pretrained(load_unet(trained.folder), folder)), expected) < 1e-5
    )


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_diffusers_pipeline_draws_with_the_file(to: str, trained: Trained, tmp_path: Path) -> None:
    """A picture by diffusers' own pipeline and `load_lora_weights`, beside the one that is drawn here."""
    adapted = trained.adapted("lora:alpha=3.5")
    file = trained.export("lora:alpha=3.5", to, tmp_path / "out.safetensors")
    theirs: Any = DiffusionPipeline.from_pretrained(trained.folder)
    theirs.load_lora_weights(str(file.parent), weight_name=file.name)
    assert relative_error(trained.predict(theirs.unet), trained.predict(adapted.unet)) < 1e-5
    assert_same_picture(theirs, adapted)


def test_diffusers_pipeline_draws_with_the_merged_unet(trained: Trained, tmp_path: Path) -> None:
    merged = UNet2DConditionModel.from_pretrained(trained.export("delora", "merged", tmp_path / "merged"))
    adapted = trained.adapted("delora")
    assert relative_error(trained.predict(load_unet(trained.folder)), trained.predict(merged)) > 1e-3
    assert relative_error(trained.predict(merged), trained.predict(adapted.unet)) < 1e-5
    assert_same_picture(DiffusionPipeline.from_pretrained(trained.folder, unet=merged), adapted)


def assert_same_picture(theirs: Any, ours: pipelines.Pipeline) -> None:
    """Both draw the same from one noise, of which the base model draws something else."""
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    noise, side = start_noise(ours, [1], 16), 16
    expected = theirs(
        PROMPTS[0], latents=noise, num_inference_steps=3, guidance_scale=3.0, height=side, width=side, output_type="pt"
    ).images  # fmt: skip
    latents = sample(ours, ours.encode_text(PROMPTS[:1])[None], noise, steps=3, guidance=3.0)[0]
    torch.testing.assert_close(ours.decode_latents(latents), expected, rtol=1e-4, atol=1e-5)


def test_any_method_becomes_a_lora_of_kohya_and_opens_again(trained: Trained, tmp_path: Path) -> None:
    file = trained.export("delora", "lora-svd", tmp_path / "out.safetensors", "--layout", "kohya")
    unet, checkpoint = load_unet(trained.folder), read_checkpoint(file)
    attach_checkpoint(unet, checkpoint)
    assert relative_error(trained.predict(unet), trained.predict(trained.adapted("delora").unet)) < 1e-5
    with safe_open(file, framework="pt") as handle:
        named = (handle.metadata() or {}).get("ss_base_model_version")
    is_xl = trained.pipeline.text_encoder_2 is not None
    assert named == ("sdxl_base_v1-0" if is_xl else None)
    starts = {key.removeprefix("lora_unet_").split("_")[0] for key in load_file(file)}
    assert starts == ({"input", "middle", "output"} if is_xl else {"down", "mid", "up"})


# Names.

NAMES = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k": "input_blocks_8_1_transformer_blocks_9_attn2_to_k",
    "mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0": "middle_block_1_transformer_blocks_3_attn1_to_out_0",
    "up_blocks.0.attentions.2.transformer_blocks.5.attn2.to_v": "output_blocks_2_1_transformer_blocks_5_attn2_to_v",
    "up_blocks.1.attentions.1.proj_in": "output_blocks_4_1_proj_in",
}
"""As kohya's `make_unet_conversion_map` of SDXL has them: input 3 i + j + 1, output 3 i + j."""


@pytest.mark.parametrize("path", NAMES)
def test_kohyas_names_of_sdxl(path: str) -> None:
    assert to_kohya(path, xl=True) == f"lora_unet_{NAMES[path]}"
    assert split_key(f"{to_kohya(path, xl=True)}.lora_up.weight") == (path, "B")


@pytest.mark.parametrize("trained", ["sdxl"], indirect=True)
def test_second_text_encoder_is_measured_and_left_out(trained: Trained, tmp_path: Path) -> None:
    """A stranger's file of SDXL that adapts the U-Net and both text encoders."""
    file = trained.export("lora:alpha=3.5", "kohya", tmp_path / "out.safetensors")
    draw, tensors = torch.Generator().manual_seed(0), load_file(file)
    for name, width in (("lora_te1", 32), ("lora_te2", 24)):
        stem = f"{name}_text_model_encoder_layers_1_self_attn_q_proj"
        tensors[f"{stem}.lora_down.weight"] = torch.randn(4, width, generator=draw)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(width, 4, generator=draw)
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(tensors, file)
    checkpoint, base = read_checkpoint(file), BaseWeights(trained.folder)
    rows = measure(checkpoint, base).set_index("component")
    assert rows.index.value_counts()[["text_encoder", "text_encoder_2"]].to_dict() == {
        "text_encoder": 1,
        "text_encoder_2": 1,
    }
    stem = "lora_te2_text_model_encoder_layers_1_self_attn_q_proj"
    change = 0.5 * tensors[f"{stem}.lora_up.weight"].double() @ tensors[f"{stem}.lora_down.weight"].double()
    assert rows.loc["text_encoder_2", "distance"] == pytest.approx(float(change.norm()), rel=1e-5)
    weight = dict(trained.pipeline.text_encoder_2.named_parameters())[
        "text_model.encoder.layers.1.self_attn.q_proj.weight"
    ]
    assert rows.loc["text_encoder_2", "base_norm"] == pytest.approx(float(weight.double().norm()), rel=1e-6)
    assert len(checkpoint.of_unet().shapes) == len(checkpoint.shapes) - 2


# What is refused.


def test_kohyas_names_need_the_base_of_an_sdxl(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained.runs["lora:alpha=3.5"].path)
    code = main([run, "--to", "kohya", "--out", str(tmp_path / "out.safetensors")])
    if trained.pipeline.text_encoder_2 is None:
        assert code == 0
        return
    assert code == 2
    assert (
        "is of an SDXL, whose names for kohya hang on the base model: name it with --model" in capsys.readouterr().err
    )


@pytest.mark.parametrize("trained", ["sdxl"], indirect=True)
def test_kohya_has_no_names_for_other_blocks(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_sdxl_like(tmp_path / "other", layers_per_block=1)
    config = json.loads((other / "unet" / "config.json").read_text())
    assert config["layers_per_block"] == 1
    file = trained.export("lora:alpha=3.5", "diffusers", tmp_path / "in.safetensors")
    assert main([str(file), "--to", "kohya", "--out", str(tmp_path / "out"), "--model", str(other)]) == 2
    assert "layers a block" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
