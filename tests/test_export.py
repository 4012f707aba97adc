"""Adapters out to other programs and in again: what real PEFT and diffusers open, and what they saved, opened here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from peft import DeloraConfig, LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters.attach_checkpoint import attach_checkpoint, build_adapter
from adapters.inject import ATTENTION_PROJECTIONS
from adapters.layer_names import to_kohya
from adapters.read_checkpoint import read_checkpoint
from adapters.starting_point import agree
from tests.make_adapters import relative_error
from tests.make_checkpoints import RANK, literal_distances, load_unet, make_batch, make_moved, make_run, predict
from training.export import main

LORAS = ["lora", "lora:alpha=3.5,init=gaussian", "lora:divisor=sqrt_r", "dora", "dora-fixed"]
OTHERS = ["delora", "delora:start=live", "delora:start=zero_b", "etherplus", "etherplus:sides=one"]
TARGETS = rf".*({'|'.join(ATTENTION_PROJECTIONS)})"


@pytest.fixture
def pipeline(pocket: Path) -> Path:
    """The pocket's pipeline folder."""
    return pocket / "pipeline"


def export(run: Path, to: str, out: Path, *more: str) -> Path:
    assert main([str(run), "--to", to, "--out", str(out), *more]) == 0
    return out


def open_pipeline(pipeline: Path, file: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None, requires_safety_checker=False)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    return pipe


# Trained here, opened there.


@pytest.mark.parametrize("variant", [*LORAS, "delora:start=zero_b"])
def test_peft_opens_the_folder(variant: str, pipeline: Path, tmp_path: Path) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    folder = export(run.path, "peft", tmp_path / "out")
    assert relative_error(predict(load_unet(pipeline)), predict(unet)) > 1e-3, "the adapter does something"
    assert relative_error(predict(PeftModel.from_pretrained(load_unet(pipeline), folder)), predict(unet)) < 1e-5


@pytest.mark.parametrize("variant", LORAS)
def test_diffusers_opens_its_layout(variant: str, pipeline: Path, tmp_path: Path) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    file = export(run.path, "diffusers", tmp_path / "out.safetensors")
    assert relative_error(predict(open_pipeline(pipeline, file).unet), predict(unet)) < 1e-5


@pytest.mark.parametrize("variant", [variant for variant in LORAS if not variant.startswith("dora")])
def test_diffusers_opens_kohyas_layout(variant: str, pipeline: Path, tmp_path: Path) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    file = export(run.path, "kohya", tmp_path / "out.safetensors")
    assert relative_error(predict(open_pipeline(pipeline, file).unet), predict(unet)) < 1e-5


def test_diffusers_loses_kohyas_dora_and_the_export_says_so(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, "dora"), pipeline)
    kohya = export(run.path, "kohya", tmp_path / "kohya.safetensors")
    assert "diffusers drops dora_scale" in (said := capsys.readouterr().err)
    assert "--to diffusers" in said
    assert relative_error(predict(open_pipeline(pipeline, kohya).unet), predict(unet)) > 1e-3
    kept = export(run.path, "diffusers", tmp_path / "kept.safetensors")
    assert "dora_scale" not in capsys.readouterr().err.replace(said, "")
    assert relative_error(predict(open_pipeline(pipeline, kept).unet), predict(unet)) < 1e-5


def test_kohyas_dora_is_its_formula(pipeline: Path, tmp_path: Path) -> None:
    """LyCORIS' scale V / ||V||, one norm an output row."""
    attached = make_moved(load_unet(pipeline), "dora")
    run = make_run(tmp_path, attached, pipeline)
    tensors = load_file(export(run.path, "kohya", tmp_path / "out.safetensors"))
    for path, adapter in attached.adapters.items():
        name = f"lora_unet_{path.replace('.', '_')}"
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        v = adapter.base.weight + float(tensors[f"{name}.alpha"]) / len(down) * up @ down
        merged = tensors[f"{name}.dora_scale"] * v / v.norm(dim=1, keepdim=True)
        assert relative_error(merged, attached.merged(0)[path]) < 1e-6


def test_diffusers_conversion_of_kohyas_dora_opens_in_peft(pipeline: Path, tmp_path: Path) -> None:
    """`load_lora_weights` drops `dora_scale`, so its conversion is called by itself, and PEFT computes with the outcome."""
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, "dora"), pipeline)
    tensors = load_file(export(run.path, "kohya", tmp_path / "out.safetensors"))
    config = LoraConfig(r=RANK, lora_alpha=float(tensors[next(k for k in tensors if k.endswith(".alpha"))]), use_dora=True,
                        target_modules=TARGETS)  # fmt: skip
    converted, _ = _convert_non_diffusers_lora_to_diffusers(tensors)
    state = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in converted.items()})
    state = {key.removesuffix(".weight") if "magnitude" in key else key: t.squeeze(1) if "magnitude" in key else t
             for key, t in state.items()}  # fmt: skip
    model = peft.get_peft_model(load_unet(pipeline), config)
    outcome = peft.set_peft_model_state_dict(model, {f"base_model.model.{key}": t for key, t in state.items()})
    assert not outcome.unexpected_keys
    assert not [key for key in outcome.missing_keys if "lora_" in key]
    assert relative_error(predict(model), predict(unet)) < 1e-5


def test_kohyas_dora_by_columns_opens_here(pipeline: Path, tmp_path: Path) -> None:
    attached = make_moved(load_unet(pipeline), "dora:axis=columns")
    tensors = {}
    for key, tensor in attached.state(0).items():
        path, _, name = key.rpartition(".")
        theirs = {"A": "lora_down.weight", "B": "lora_up.weight", "magnitude": "dora_scale"}[name]
        tensors[f"{to_kohya(path)}.{theirs}"] = tensor[None] if name == "magnitude" else tensor
        tensors[f"{to_kohya(path)}.alpha"] = torch.tensor(2.0 * RANK)
    save_file(tensors, tmp_path / "lycoris.safetensors")
    checkpoint = read_checkpoint(tmp_path / "lycoris.safetensors")
    assert checkpoint.spec.options["axis"] == "columns"
    opened = attach_checkpoint(load_unet(pipeline), checkpoint)
    for path, distance in literal_distances(attached).items():
        assert float(opened.adapters[path].distance()[0]) == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_alpha_is_stored_so_that_strength_is_kept(layout: str, pipeline: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, make_moved(load_unet(pipeline), "lora"), pipeline)
    file = export(run.path, layout, tmp_path / "out.safetensors")
    with safe_open(file, framework="pt") as handle:
        if layout == "kohya":
            assert {float(handle.get_tensor(key)) for key in handle.keys() if key.endswith(".alpha")} == {2.0 * RANK}  # noqa: SIM118
        else:
            assert json.loads(handle.metadata()["lora_adapter_metadata"])["unet.lora_alpha"] == 2 * RANK


@pytest.mark.parametrize("variant", ["lora", "dora", *OTHERS])
def test_merged_unet_opens_as_any_other(variant: str, pipeline: Path, tmp_path: Path) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    folder = export(run.path, "merged", tmp_path / "out")
    assert relative_error(predict(UNet2DConditionModel.from_pretrained(folder)), predict(unet)) < 1e-5


@pytest.mark.parametrize("variant", OTHERS)
@pytest.mark.parametrize("layout", ["peft", "diffusers"])
def test_lora_by_svd_of_full_rank_loses_nothing(
    variant: str, layout: str, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = load_unet(pipeline)
    run = make_run(tmp_path, make_moved(unet, variant), pipeline)
    out = export(run.path, "lora-svd", tmp_path / f"out{'.safetensors' * (layout == 'diffusers')}", "--layout", layout)
    said = capsys.readouterr().out
    error = float(said.split("relative error ")[1].split()[0])
    assert error < 1e-6
    model = (
        PeftModel.from_pretrained(load_unet(pipeline), out) if layout == "peft" else open_pipeline(pipeline, out).unet
    )
    assert relative_error(predict(model), predict(unet)) < 1e-5


def test_lora_by_svd_prints_the_error_of_a_chosen_rank(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attached = make_moved(load_unet(pipeline), "delora")
    run = make_run(tmp_path, attached, pipeline)
    out = export(run.path, "lora-svd", tmp_path / "out", "--rank", "2")
    error = float(capsys.readouterr().out.split("relative error ")[1].split()[0])
    made, merged = read_checkpoint(out), attached.merged(0)
    lost = whole = 0.0
    for path, adapter in attached.adapters.items():
        change = (merged[path] - adapter.base.weight).double()
        lost += float((change - made.state[f"{path}.B"].double() @ made.state[f"{path}.A"].double()).norm() ** 2)
        assert torch.linalg.svdvals(change)[2:].norm() ** 2 <= lost + 1e-9
        whole += float(change.norm() ** 2)
    assert error == pytest.approx(math.sqrt(lost / whole), rel=1e-2)
    assert error > 1e-2


# Trained there, opened here.


def make_theirs(variant: str, pipeline: Path) -> PeftModel:
    """PEFT's own adapter of the pocket's U-Net, away from its start."""
    config = {
        "lora": LoraConfig(r=RANK, lora_alpha=6, target_modules=TARGETS, alpha_pattern={"attn2.to_q": 1, "to_v": 9}),
        "rslora": LoraConfig(r=RANK, lora_alpha=6, use_rslora=True, target_modules=TARGETS),
        "ranks": LoraConfig(r=RANK, lora_alpha=6, target_modules=TARGETS, rank_pattern={"to_q": 2, "to_out.0": 7}),
        "dora": LoraConfig(r=RANK, lora_alpha=8, use_dora=True, target_modules=TARGETS),
        "delora": DeloraConfig(r=RANK, delora_lambda=3, target_modules=TARGETS),
    }[variant]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = peft.get_peft_model(load_unet(pipeline), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
    return model


def their_distances(model: PeftModel, pipeline: Path) -> dict[str, float]:
    base = load_unet(pipeline).state_dict()
    merged = model.merge_and_unload().state_dict()
    moved = {key: float((merged[key] - base[key]).double().norm()) for key in base}
    return {key.removesuffix(".weight"): value for key, value in moved.items() if value}


@pytest.mark.parametrize("variant", ["lora", "rslora", "ranks", "dora", "delora"])
def test_what_peft_saved_opens_here_with_equal_distances(variant: str, pipeline: Path, tmp_path: Path) -> None:
    model, unet = make_theirs(variant, pipeline), load_unet(pipeline)
    model.save_pretrained(str(tmp_path))
    attached = attach_checkpoint(unet, read_checkpoint(tmp_path))
    assert relative_error(predict(unet), predict(model)) < 1e-5
    theirs = their_distances(model, pipeline)
    assert theirs.keys() == attached.adapters.keys()
    for path, adapter in attached.adapters.items():
        assert float(adapter.distance()[0]) == pytest.approx(theirs[path], rel=1e-4)


@pytest.mark.parametrize("form", ["plain", "script"])
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_what_diffusers_saved_opens_here(form: str, variant: str, pipeline: Path, tmp_path: Path) -> None:
    model, unet = make_theirs(variant, pipeline), load_unet(pipeline)
    state = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    if form == "script":  # as diffusers' training scripts do; they train with alpha = r and store no alpha
        state = convert_state_dict_to_diffusers(state)
        StableDiffusionPipeline.save_lora_weights(str(tmp_path), unet_lora_layers=state)
        pipe = open_pipeline(pipeline, tmp_path / "pytorch_lora_weights.safetensors")
        expected = predict(pipe.unet)
    else:
        config = model.peft_config["default"].to_dict() | {"target_modules": TARGETS}
        StableDiffusionPipeline.save_lora_weights(
            str(tmp_path), unet_lora_layers=state, unet_lora_adapter_metadata=config
        )
        expected = predict(model)
    attach_checkpoint(unet, read_checkpoint(tmp_path / "pytorch_lora_weights.safetensors"))
    assert relative_error(predict(unet), expected) < 1e-5


@pytest.mark.parametrize("to", ["peft", "diffusers", "kohya"])
@pytest.mark.parametrize("variant", LORAS)
def test_every_layout_comes_back_to_the_bit(to: str, variant: str, pipeline: Path, tmp_path: Path) -> None:
    attached = make_moved(load_unet(pipeline), variant)
    run = make_run(tmp_path, attached, pipeline)
    back = read_checkpoint(export(run.path, to, tmp_path / f"out{'.safetensors' * (to != 'peft')}"))
    state = attached.state(0)
    assert back.state.keys() == state.keys()
    assert all(torch.equal(back.state[key], state[key]) for key in state)
    assert agree(back, attached.spec, RANK).spec == attached.spec, "the strength is another"


def test_released_delora_checkpoint_opens_here(pipeline: Path, tmp_path: Path) -> None:
    unet = load_unet(pipeline)
    attached = make_moved(unet, "delora:start=live")
    names = {
        "A": "delora_A.weight",
        "B": "delora_B.weight",
        "lam": "delora_lambda",
        "A_start": "frozen_C",
        "B_start": "frozen_D",
    }
    tensors = {}
    for key, tensor in attached.state(0).items():
        path, _, name = key.rpartition(".")
        if name in names:
            tensors[f"base_model.model.{path}.{names[name]}"] = tensor.reshape(1) if tensor.ndim == 0 else tensor
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "DELORA", "r": 4}')
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "released DeLoRA"
    other = load_unet(pipeline)
    opened = attach_checkpoint(other, checkpoint)
    assert relative_error(predict(other), predict(unet)) < 1e-6
    for path, distance in literal_distances(attached).items():
        assert float(opened.adapters[path].distance()[0]) == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("variant", ["lora", "dora", "delora", "etherplus"])
def test_an_opened_adapter_goes_on_training(variant: str, pipeline: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, make_moved(load_unet(pipeline), variant), pipeline)
    unet = load_unet(pipeline)
    attached = attach_checkpoint(unet, read_checkpoint(run.adapter), seeds=[0, 1])
    assert torch.equal(attached.flat[0], attached.flat[1])
    batch = [part.repeat(2, *[1] * (part.ndim - 1)) for part in make_batch(unet)]
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(5):
        attached.zero_grad()
        loss = (unet(*batch).sample ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_strangers_format_becomes_another(pipeline: Path, tmp_path: Path) -> None:
    model = make_theirs("ranks", pipeline)
    model.save_pretrained(str(tmp_path / "theirs"))
    file = export(tmp_path / "theirs", "kohya", tmp_path / "out.safetensors")
    assert relative_error(predict(open_pipeline(pipeline, file).unet), predict(model)) < 1e-5


def test_delora_of_peft_measures_without_a_base(pipeline: Path, tmp_path: Path) -> None:
    attached = make_moved(load_unet(pipeline), "delora:start=zero_b")
    checkpoint = read_checkpoint(export(make_run(tmp_path, attached, pipeline).path, "peft", tmp_path / "out"))
    assert not checkpoint.needs_base
    path, adapter = next(iter(attached.adapters.items()))
    built = build_adapter(checkpoint, path, adapter.base.weight.detach())
    assert float(built.distance()[0]) == pytest.approx(literal_distances(attached)[path], rel=1e-4)
