"""Native methods against HF PEFT on a U-Net, forward, gradients and steps, and the folders that PEFT and we both read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import DeloraConfig, HRAConfig, LoraConfig, OFTConfig, PeftConfig, PeftModel, VeraConfig
from safetensors.torch import load_file
from torch import Tensor

from adapters import BadInput, parse_method, peft_format, peft_layout
from adapters.inject import ATTENTION_PROJECTIONS, attach
from adapters.pack import Attached
from tests.make_adapters import relative_error

RANK = 4
TARGETS = rf".*({'|'.join(ATTENTION_PROJECTIONS)})"
CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS),
    "dora": LoraConfig(r=RANK, lora_alpha=2 * RANK, use_dora=True, target_modules=TARGETS),
    "delora:start=zero_b": DeloraConfig(r=RANK, delora_lambda=2, target_modules=TARGETS),
    "lora:divisor=sqrt_r": LoraConfig(r=RANK, lora_alpha=2 * RANK, use_rslora=True, target_modules=TARGETS),
    "vera": VeraConfig(r=RANK, target_modules=TARGETS),
    "hra": HRAConfig(r=RANK, target_modules=TARGETS),
    "oft": OFTConfig(r=4, oft_block_size=0, use_cayley_neumann=False, target_modules=TARGETS),
    "oft:blocks=2,cayley=series": OFTConfig(r=2, oft_block_size=0, target_modules=TARGETS),
}
BASE_RATES = {
    "lora": 6e-4,
    "dora": 6e-4,
    "delora:start=zero_b": 6e-3,
    "lora:divisor=sqrt_r": 6e-4,
    "vera": 2e-2,
    "hra": 6e-3,
    "oft": 6e-3,
    "oft:blocks=2,cayley=series": 6e-3,
}
"""The first three from Figure 2 of the DeLoRA paper."""
SAVED_AS_PEFT = [
    "lora", "lora:alpha=3.5,init=gaussian", "lora:divisor=sqrt_r,alpha=3,lr_ratio=16", "dora",
    "dora:alpha=6,norm_grad=full", "dora:divisor=sqrt_r", "dora-fixed", "delora:start=zero_b",
    "delora:start=zero_b,norm=scalar", "oft", "oft:blocks=2,cayley=series", "coft:radius=peft,eps=0.5", "coft:eps=0.01",
    "hra", "vera",
]  # fmt: skip
SAVED_MERGED = [
    "delora", "delora:start=live,norm=scalar", "etherplus", "etherplus:sides=one,blocks=2",
    "dora:axis=columns", "dvora:axis=columns", "naive", "full",
]  # fmt: skip

every_method = pytest.mark.parametrize("variant", CONFIGS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=("float64", "float32"))


def make_unet(dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """A small U-Net with 16 attention matrices, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(16,), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",), mid_block_type=None, up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
        ).to(dtype)  # fmt: skip


def make_batch(dtype: torch.dtype = torch.float32, size: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, timesteps, context, noise."""
    generator = torch.Generator().manual_seed(1)
    latents, context, noise = (
        torch.randn(size, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((4, 4, 4), (5, 12), (4, 4, 4))
    )
    return latents, torch.full((size,), 7), context, noise


def make_attached(
    variant: str, dtype: torch.dtype = torch.float32, num_replicas: int = 1, moved: float = 0.0
) -> tuple[UNet2DConditionModel, Attached]:
    """A U-Net with a pack, away from its start."""
    unet = make_unet(dtype)
    attached = attach(
        unet, parse_method(variant), seeds=list(range(num_replicas)), rank=RANK, boundary=[1.5] * num_replicas
    )
    noise = torch.randn(attached.flat.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    attached.flat += (moved * noise).to(dtype)
    return unet, attached


def make_peft(variant: str, attached: Attached, dtype: torch.dtype) -> PeftModel:
    """PEFT's model of the same U-Net, in the state of our first replica."""
    model = peft.get_peft_model(make_unet(dtype), CONFIGS[variant])
    if dtype == torch.float64:
        model.double()
    names, state = peft_layout.NAMES[attached.spec.name], {}
    for key, tensor in attached.state(0).items():
        path, _, name = key.rpartition(".")
        state[f"{peft_layout.PREFIX}{path}.{names[name]}"] = tensor.reshape(-1) if tensor.ndim == 0 else tensor
    if variant.startswith("delora"):
        norms = {path: adapter.base.weight.norm(dim=0) for path, adapter in attached.adapters.items()}
        state |= {f"{peft_layout.PREFIX}{path}.delora_w_norm": norm for path, norm in norms.items()}
    if variant == "vera":  # theirs, from their generator: ours must be the same
        state |= {f"base_model.vera_{name}": getattr(model.base_model, f"vera_{name}")["default"] for name in "AB"}
    outcome: Any = peft.set_peft_model_state_dict(model, state)
    assert not outcome.unexpected_keys
    assert not [
        key for key in outcome.missing_keys if any(mark in key for mark in ("lora", "vera_lambda", "oft_R", "hra_u"))
    ]
    return model


def peft_parameters(model: PeftModel, attached: Attached) -> list[tuple[Tensor, Tensor]]:
    """(ours, theirs) of every trainable tensor."""
    theirs = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    pairs: list[tuple[Tensor, Tensor]] = []
    for path, adapter in attached.adapters.items():
        for name in adapter.ROLES:
            known = peft_layout.NAMES[attached.spec.name][name].removesuffix(".weight")
            (key,) = [key for key in theirs if path in key and known in key]
            pairs.append((adapter.get_parameter(name), theirs.pop(key)))
    assert not theirs, "both train the same tensors"
    return pairs


def loss_of(model: Any, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The prediction and its mean squared error against the noise."""
    latents, steps, context, noise = batch
    prediction = model(latents, steps, context).sample
    return prediction, torch.nn.functional.mse_loss(prediction, noise)


@every_method
@every_dtype
def test_forward_and_gradients_equal_pefts(variant: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    unet, attached = make_attached(variant, dtype, moved=0.1)
    model = make_peft(variant, attached, dtype)
    batch = make_batch(dtype)
    ours, our_loss = loss_of(unet, batch)
    theirs, their_loss = loss_of(model, batch)
    assert relative_error(ours, theirs) < tolerance
    assert relative_error(ours, make_unet(dtype)(*batch[:3]).sample) > 1e-3, "the adapters do something"
    our_loss.backward()
    their_loss.backward()
    pairs = peft_parameters(model, attached)
    gradients = [(ours.grad[0].flatten(), theirs.grad.flatten()) for ours, theirs in pairs]  # type: ignore[index,union-attr]
    whole = [torch.cat(parts) for parts in zip(*gradients)]
    assert relative_error(*whole) < tolerance
    for our_gradient, their_gradient in gradients:
        assert (our_gradient - their_gradient).norm() < 10 * tolerance * (
            their_gradient.norm() + 1e-3 * whole[1].norm()
        )


@every_method
@every_dtype
def test_fifty_steps_of_adamw_equal_pefts(variant: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-4}[dtype]
    unet, attached = make_attached(variant, dtype)
    model = make_peft(variant, attached, dtype)
    pairs = peft_parameters(model, attached)
    start = torch.cat([ours[0].detach().flatten() for ours, _ in pairs])
    optimizers = [torch.optim.AdamW(part, lr=BASE_RATES[variant]) for part in zip(*pairs)]
    batch = make_batch(dtype)
    for _ in range(50):
        for side, optimizer in zip((unet, model), optimizers):
            attached.zero_grad()
            model.zero_grad()
            loss_of(side, batch)[1].backward()
            optimizer.step()
    ours, theirs = (torch.cat([part.detach().flatten() for part in side]) for side in zip(*pairs))
    assert relative_error(ours, start) > 0.05, "the steps moved something"
    assert relative_error(ours, theirs) < tolerance
    assert relative_error(loss_of(unet, batch)[0], loss_of(model, batch)[0]) < tolerance


@pytest.mark.parametrize("variant", ["lora", "dora", "dora:axis=columns", "delora", "etherplus", "vera", "hra", "full"])
def test_gradient_checkpointing_of_diffusers_changes_nothing(variant: str) -> None:
    unet, attached = make_attached(variant, torch.float64, num_replicas=2, moved=0.1)
    batch = make_batch(torch.float64, size=4)
    loss_of(unet.train(), batch)[1].backward()
    gradient = attached.grad.clone()
    attached.zero_grad()
    unet.enable_gradient_checkpointing()
    loss_of(unet, batch)[1].backward()
    assert relative_error(attached.grad, gradient) < 1e-12


# Folders.


@pytest.mark.parametrize("variant", SAVED_AS_PEFT)
def test_saved_folder_loads_in_peft(variant: str, tmp_path: Path) -> None:
    unet, attached = make_attached(variant, num_replicas=2, moved=0.1)
    latents, steps, context, _ = make_batch(size=4)
    expected = unet(latents, steps, context).sample[2:]
    peft_format.save(tmp_path / "adapter", attached, 1, base_model="pocket")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    model = PeftModel.from_pretrained(make_unet(), tmp_path / "adapter")
    assert model.peft_config["default"].base_model_name_or_path == "pocket"
    assert relative_error(model(latents[2:], steps[2:], context[2:]).sample, expected) < 1e-5
    merged = model.merge_and_unload()
    assert relative_error(merged(latents[2:], steps[2:], context[2:]).sample, expected) < 1e-5


@pytest.mark.parametrize("variant", SAVED_MERGED)
def test_saved_folder_holds_merged_weights_where_peft_has_no_such_method(variant: str, tmp_path: Path) -> None:
    unet, attached = make_attached(variant, num_replicas=2, moved=0.1)
    latents, steps, context, _ = make_batch(size=4)
    expected = unet(latents, steps, context).sample[2:]
    peft_format.save(tmp_path / "adapter", attached, 1, base_model="pocket")
    plain = make_unet()
    outcome = plain.load_state_dict(load_file(tmp_path / "adapter" / "merged.safetensors"), strict=False)
    assert not outcome.unexpected_keys
    assert relative_error(plain(latents[2:], steps[2:], context[2:]).sample, expected) < 1e-5
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["method"] == attached.spec.name
    assert config["options"] == dict(attached.spec.options)
    assert config["target_modules"] == list(attached.adapters)


@pytest.mark.parametrize("variant", [*SAVED_AS_PEFT, *SAVED_MERGED])
def test_loaded_state_is_the_saved_one(variant: str, tmp_path: Path) -> None:
    _, attached = make_attached(variant, num_replicas=2, moved=0.1)
    peft_format.save(tmp_path / "adapter", attached, 1, base_model="pocket")
    state = peft_format.load(tmp_path / "adapter")
    _, other = make_attached(variant, num_replicas=3)
    other.load_state(2, state)
    assert torch.equal(other.flat[2], attached.flat[1])
    assert all(torch.equal(tensor, other.state(2)[key]) for key, tensor in attached.state(1).items())


@every_method
def test_folder_that_peft_saved_loads_here(variant: str, tmp_path: Path) -> None:
    _, attached = make_attached(variant, moved=0.1)
    make_peft(variant, attached, torch.float32).save_pretrained(str(tmp_path))
    unet, other = make_attached(variant)
    other.load_state(0, peft_format.load(tmp_path))
    assert torch.equal(other.flat, attached.flat)


def test_dora_with_a_zero_row_is_saved_merged_because_pefts_is_nan(tmp_path: Path) -> None:
    unet = make_unet()
    with torch.no_grad():
        unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q").weight[3] = 0
    attached = attach(unet, parse_method("dora"), seeds=[0], rank=RANK)
    peft_format.save(tmp_path / "adapter", attached, 0, base_model="pocket")
    weights = load_file(tmp_path / "adapter" / "merged.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_saving_replaces_a_folder_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    _, attached = make_attached("delora", moved=0.1)
    folder = tmp_path / "adapter"
    peft_format.save(folder, attached, 0, base_model="pocket")
    for leftover in (".adapter.1.tmp", ".adapter.1.old"):
        (tmp_path / leftover).mkdir()
    _, lora = make_attached("lora", moved=0.1)
    peft_format.save(folder, lora, 0, base_model="pocket")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("fails", ["save_file", "rename", "second rename"])
def test_a_failed_save_leaves_the_old_folder(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, attached = make_attached("lora", moved=0.1)
    folder = tmp_path / "adapter"
    peft_format.save(folder, attached, 0, base_model="pocket")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    rename, calls = peft_format.os.rename, []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if fails == "second rename" and len(calls) != 2:
            return rename(*arguments)
        raise OSError(28, "No space left on device")

    owner = peft_format if fails == "save_file" else peft_format.os
    monkeypatch.setattr(owner, "save_file" if fails == "save_file" else "rename", fail)
    attached.flat += 1
    with pytest.raises(BadInput, match=r"adapter cannot be written: .*No space left on device"):
        peft_format.save(folder, attached, 0, base_model="pocket")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_loading_what_is_no_adapter_names_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no adapter"):
        peft_format.load(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors is damaged"):
        peft_format.load(tmp_path)


def test_loading_another_method_of_peft_names_the_tensor(tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=TARGETS, feedforward_modules=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(make_unet(), config).save_pretrained(str(tmp_path))
    with pytest.raises(BadInput, match=r"tensor '.*ia3_l' belongs to none of LoRA, DoRA, DeLoRA, OFT, HRA, VeRA"):
        peft_format.load(tmp_path)
