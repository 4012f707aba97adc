"""OFT, BOFT, HRA, VeRA and other tuners of HF PEFT: trained here and opened there, trained there and opened here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import BOFTConfig, HRAConfig, IA3Config, LoKrConfig, OFTConfig, PeftModel, TinyLoraConfig, VeraConfig
from safetensors.torch import load_file, save_file

from adapters import BadInput
from adapters.attach_checkpoint import attach_checkpoint
from adapters.inject import ATTENTION_PROJECTIONS
from adapters.peft_tuner import no_build_on_cpu
from adapters.read_checkpoint import read_checkpoint
from tests.make_adapters import relative_error
from tests.make_checkpoints import literal_distances, load_unet, make_batch, make_moved, make_run, predict
from tests.make_pipeline import make_pipeline
from training.base_weights import BaseWeights
from training.export import main
from training.measure import measure
from training.open_adapter import open_adapter

TARGETS = rf".*({'|'.join(ATTENTION_PROJECTIONS)})"
HERE = ["oft", "oft:blocks=2,cayley=series", "coft:eps=0.001", "coft:radius=peft,eps=0.5", "hra", "vera"]
BRIDGED = ["peft:boft:boft_block_size=8", "peft:loha:r=2"]
NATIVE = {
    "oft": partial(OFTConfig, r=4, oft_block_size=0, use_cayley_neumann=False),
    "oft:series": partial(OFTConfig, r=2, oft_block_size=0),
    "coft": partial(OFTConfig, r=4, oft_block_size=0, coft=True, eps=0.3, use_cayley_neumann=False, init_weights=False),
    "hra": partial(HRAConfig, r=4),
    "vera": partial(VeraConfig, r=8, projection_prng_key=7),
}
FOREIGN = {
    "boft": partial(BOFTConfig, boft_block_size=8),
    "oft:block_size": partial(OFTConfig, oft_block_size=16, use_cayley_neumann=False),
    "oft:shared": partial(OFTConfig, r=4, oft_block_size=0, block_share=True),
    "hra:odd": partial(HRAConfig, r=3),
    "hra:GS": partial(HRAConfig, r=4, apply_GS=True),
    "vera:unsaved": partial(VeraConfig, r=8, save_projection=False),
    "ia3": partial(IA3Config, feedforward_modules=[]),
    "tinylora": TinyLoraConfig,
    "lokr": partial(LoKrConfig, r=2, rank_pattern={"attn1.to_q": 4}),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline folder."""
    return make_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def without_kernels(pipeline: Path) -> Any:
    """BOFT without its attempt to compile a CUDA kernel; PEFT's advice on VeRA's projections unheard."""
    with warnings.catch_warnings(), no_build_on_cpu({"": torch.nn.Linear(1, 1)}):
        warnings.filterwarnings("ignore", message="Specified to not (save|load) vera_A")
        warnings.filterwarnings("ignore", message="The symmetric initialization can NOT be performed when r is odd")
        yield


def export(path: Path, to: str, out: Path, *more: str) -> Path:
    assert main([str(path), "--to", to, "--out", str(out), *more]) == 0
    return out


def make_theirs(variant: str, pipeline: Path) -> PeftModel:
    """PEFT's own adapter of the pocket's U-Net, away from its start."""
    config = (NATIVE | FOREIGN)[variant](target_modules=TARGETS)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = peft.get_peft_model(load_unet(pipeline), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
    return model


def their_distances(model: PeftModel, base: UNet2DConditionModel) -> dict[str, float]:
    """Norms of what PEFT's merge changes."""
    before, after = base.state_dict(), model.merge_and_unload().state_dict()
    weights = [key.removesuffix(".weight") for key in before if key.endswith(".weight")]
    moved = {path: float((after[f"{path}.weight"] - before[f"{path}.weight"]).double().norm()) for path in weights}
    return {path: value for path, value in moved.items() if value}


# Trained here, opened there.


@pytest.mark.parametrize("variant", [*HERE, *BRIDGED])
def test_a_runs_folder_and_its_export_open_in_peft(variant: str, pipeline: Path, tmp_path: Path) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    expected = predict(unet)
    assert relative_error(predict(load_unet(pipeline)), expected) > 1e-3, "the adapter does something"
    for folder in (run.adapter, export(run.path, "peft", tmp_path / "out")):
        assert relative_error(predict(PeftModel.from_pretrained(load_unet(pipeline), folder)), expected) < 1e-5


@pytest.mark.parametrize("variant", ["oft", "hra", "vera", "dvora", *BRIDGED])
def test_a_run_becomes_a_merged_unet_and_a_lora(variant: str, pipeline: Path, tmp_path: Path) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    expected = predict(unet)
    merged = UNet2DConditionModel.from_pretrained(export(run.path, "merged", tmp_path / "merged"))
    assert relative_error(predict(merged), expected) < 1e-5
    lora = PeftModel.from_pretrained(load_unet(pipeline), export(run.path, "lora-svd", tmp_path / "lora"))
    assert relative_error(predict(lora), expected) < 1e-5


@pytest.mark.parametrize("variant", [*HERE, "dvora", *BRIDGED])
def test_a_run_is_measured_as_its_merged_weights(variant: str, pipeline: Path, tmp_path: Path) -> None:
    attached = make_moved(load_unet(pipeline), variant)
    run, expected = make_run(tmp_path, attached, pipeline), literal_distances(attached)
    for path in (run.path, run.adapter):
        rows = measure(open_adapter(path, str(pipeline)).checkpoint, BaseWeights(pipeline)).set_index("matrix")
        assert rows["distance"].to_dict() == pytest.approx(expected, rel=1e-4), path
        assert rows["num_out"].notna().all()


# Trained there, opened here.


@pytest.mark.parametrize("variant", [*NATIVE, *(v for v in FOREIGN if v != "tinylora")])
def test_what_peft_saved_opens_here_with_equal_distances(variant: str, pipeline: Path, tmp_path: Path) -> None:
    model, unet = make_theirs(variant, pipeline), load_unet(pipeline)
    expected = predict(model)
    model.save_pretrained(str(tmp_path))
    base = BaseWeights(pipeline)
    checkpoint = read_checkpoint(tmp_path).sized(base.shapes)
    name = variant.partition(":")[0]
    assert checkpoint.spec.name == (name if variant in NATIVE else f"peft:{name}")
    attached = attach_checkpoint(unet, checkpoint)
    assert relative_error(predict(unet), expected) < 1e-5
    theirs = their_distances(model, load_unet(pipeline))
    assert {path: float(a.distance()[0]) for path, a in attached.adapters.items()} == pytest.approx(theirs, rel=1e-4)
    rows = measure(checkpoint, base).set_index("matrix")
    assert rows["distance"].to_dict() == pytest.approx(theirs, rel=1e-4)
    again = export(tmp_path, "peft", tmp_path / "again", "--model", str(pipeline))
    assert relative_error(predict(PeftModel.from_pretrained(load_unet(pipeline), again)), expected) < 1e-5


@pytest.mark.parametrize("variant", ["oft", "vera", "boft"])
def test_what_peft_saved_goes_on_training(variant: str, pipeline: Path, tmp_path: Path) -> None:
    make_theirs(variant, pipeline).save_pretrained(str(tmp_path))
    unet = load_unet(pipeline)
    attached = attach_checkpoint(unet, read_checkpoint(tmp_path))
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-3)
    inputs = make_batch(unet)
    losses = []
    for _ in range(4):
        attached.zero_grad()
        loss = (unet(*inputs).sample ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


# What is refused.


def test_a_folder_without_a_base_asks_for_it(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_theirs("boft", pipeline).save_pretrained(str(tmp_path))
    assert main(["--inspect", str(tmp_path), "--out", str(tmp_path / "seen.png")]) == 0
    assert "depends on the base model: name it with --model" in capsys.readouterr().out
    assert main([str(tmp_path), "--to", "lora-svd"]) == 2
    assert "needs the base model" in capsys.readouterr().err


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write a folder's tensors anew."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize("variant", ["oft", "hra", "vera", "boft"])
def test_another_model_names_the_first_matrix(
    variant: str, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_theirs(variant, pipeline).save_pretrained(str(tmp_path))
    change_tensors(tmp_path, lambda tensors: {key.replace("mid_block", "end_block"): t for key, t in tensors.items()})
    assert main([str(tmp_path), "--to", "merged", "--model", str(pipeline), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "of another model" in line
    assert "'end_block.attentions.0.transformer_blocks.0.attn1.to_" in line


def test_tensors_of_other_sizes_name_the_matrix(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_theirs("hra", pipeline).save_pretrained(str(tmp_path))
    change_tensors(tmp_path, lambda tensors: {key: t[:-1].clone() for key, t in tensors.items()})
    assert main(["--inspect", str(tmp_path), "--model", str(pipeline), "--out", str(tmp_path / "seen.png")]) == 2
    line = capsys.readouterr().err
    assert "down_blocks" in line
    assert "in the checkpoint" in line


def test_boft_of_other_sizes_is_refused_in_one_line(pipeline: Path, tmp_path: Path) -> None:
    make_theirs("boft", pipeline).save_pretrained(str(tmp_path))
    change_tensors(tmp_path, lambda tensors: {key: t[:1].clone() for key, t in tensors.items()})
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors is of another model: .*boft_"):
        attach_checkpoint(load_unet(pipeline), read_checkpoint(tmp_path))


def test_a_type_that_hangs_on_the_modules_order_is_refused(pipeline: Path, tmp_path: Path) -> None:
    make_theirs("tinylora", pipeline).save_pretrained(str(tmp_path))
    with pytest.raises(BadInput, match="order of the model's modules"):
        measure(read_checkpoint(tmp_path), BaseWeights(pipeline))


def test_a_changed_bias_is_merged_and_fits_no_lora(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_theirs("ia3", pipeline)
    model.save_pretrained(str(tmp_path / "ia3"))
    merged = export(tmp_path / "ia3", "merged", tmp_path / "merged", "--model", str(pipeline))
    assert relative_error(predict(UNet2DConditionModel.from_pretrained(merged)), predict(model)) < 1e-5
    assert main([str(tmp_path / "ia3"), "--to", "lora-svd", "--model", str(pipeline)]) == 2
    assert "changes the bias of 'down_blocks" in capsys.readouterr().err


def test_a_type_that_does_not_exist_is_named(pipeline: Path, tmp_path: Path) -> None:
    make_theirs("hra", pipeline).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {"peft_type": "BRA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"PEFT type 'bra'.*types: .*boft"):
        read_checkpoint(tmp_path)
