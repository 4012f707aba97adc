"""Finding targets, attaching and detaching, the one buffer of a pack, and how methods are named."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from adapters import METHODS, BadInput, get_class, parse_method
from adapters.inject import attach, find_targets
from adapters.parameters import count_parameters
from tests.make_adapters import (
    SEEDS,
    VARIANTS,
    make_inputs,
    make_model,
    make_pack,
    paired_of_each_method,
    relative_error,
)
from tests.reference import reference_num_parameters

one_of_each = pytest.mark.parametrize("variant", list(METHODS))


# Targets.


def test_targets_are_the_attention_projections_in_module_order() -> None:
    model = make_model()
    model.add_module("mlp", nn.Linear(4, 4))
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    targets = find_targets(model)
    assert list(targets) == [f"attn{i}.{name}" for i in (1, 2) for name in names]
    assert all(targets[path] is model.get_submodule(path) for path in targets)


def test_patterns_match_whole_parts_of_a_name() -> None:
    model = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(2, 2), "to_q2": nn.Linear(2, 2)})})
    model["xattn1"] = nn.ModuleDict({"to_q": nn.Linear(2, 2)})
    assert list(find_targets(model)) == ["attn1.to_q"]
    assert list(find_targets(model, [r"to_q\d"])) == ["attn1.to_q2"]


STABLE_DIFFUSION_15 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}  # fmt: skip
"""What its U-Net's config.json says, where that is not the default of the class."""


@pytest.fixture(scope="module")
def shapes() -> list[tuple[int, int]]:
    """The adapted matrices of Stable Diffusion 1.5, from its U-Net built without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION_15)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    return [(layer.out_features, layer.in_features) for layer in find_targets(unet).values()]


@pytest.mark.parametrize(
    ("method", "rank", "number"),
    [
        ("lora", 4, 797_184),
        ("lora", 16, 3_188_736),
        ("dora-fixed", 16, 3_188_736),
        ("dora", 16, 3_288_576),
        ("dora:axis=columns", 16, 3_188_736 + 99_456),
        ("delora", 16, 3_188_864),
        ("ablation-normalized", 16, 3_188_864),
        ("ether", 16, 99_456),
        ("oft", 16, 11_602_368),
        ("coft", 16, 11_602_368),
        ("etherplus:sides=one", 16, 198_912),
        ("etherplus", 16, 398_592),
        ("vera", 256, 128 * 256 + 99_840),
        ("dvora", 256, 128 * 256 + 2 * 99_840),
        ("hra", 8, 8 * 99_456),
        ("nblora", 16, 3_188_736),
        ("nblora:strength=learned", 16, 3_188_736 + 128 * 16),
        ("singlora", 16, 1_689_600),
        ("full", 16, 93_511_680),
    ],
)
def test_stable_diffusion_has_128_targets_and_the_papers_numbers_of_parameters(
    shapes: list[tuple[int, int]], method: str, rank: int, number: int
) -> None:
    """0.8 M for LoRA of rank 4, 3.2 M for rank 16, 0.2 M and 0.4 M for ETHER+ on one and two sides; 99,840 outputs."""
    spec = parse_method(method)
    assert len(shapes) == 128
    assert count_parameters(spec, shapes, rank) == number
    assert sum(reference_num_parameters(spec.name, *shape, rank, spec.options) for shape in shapes) == number


def test_a_model_without_targets_is_refused() -> None:
    with pytest.raises(BadInput, match=r"no linear layer of Sequential has a name that ends in attn\[12\]"):
        find_targets(nn.Sequential(nn.Linear(2, 2)))


def test_a_model_with_adapters_is_refused() -> None:
    model, _ = make_pack("lora")
    with pytest.raises(BadInput, match=r"already has an adapter at 'attn1\.to_q': detach it first"):
        make_pack("lora", model=model)


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_that_does_not_fit_names_the_matrix(rank: int) -> None:
    message = rf"^rank {rank} does not fit matrix 'attn1\.to_q' of 8 x 12: allowed are 1 to 8$"
    with pytest.raises(BadInput, match=message):
        make_pack("lora", rank=rank)
    make_pack("etherplus", rank=rank)  # has no rank


def test_a_rank_that_a_method_cannot_divide_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^rank 3 is not allowed here: it must be a multiple of 2$"):
        attach(make_model(), parse_method("hra"), seeds=SEEDS, rank=3)


def test_blocks_that_do_not_divide_name_the_matrix() -> None:
    with pytest.raises(BadInput, match=r"blocks=5 does not divide matrix 'attn1\.to_q' of 8 x 12"):
        make_pack("etherplus:blocks=5")


@pytest.mark.parametrize("boundary", [None, [1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0], [1.0, -2.0, 1.0]])
def test_a_boundary_is_needed_by_delora_and_checked(boundary: list[float] | None) -> None:
    with pytest.raises(BadInput, match="boundary"):
        attach(make_model(), parse_method("delora"), seeds=SEEDS, rank=2, boundary=boundary)


def test_a_refused_attach_leaves_the_model_as_it_was() -> None:
    model = make_model()
    with pytest.raises(BadInput):
        make_pack("lora", rank=9, model=model)
    assert isinstance(model.attn1.to_q, nn.Linear)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_vera_shares_one_random_pair_among_all_matrices() -> None:
    _, attached = make_pack("vera", dtype=torch.float32)
    wide = attached.adapters["attn2.to_k"]  # 8 x 20
    tall = attached.adapters["attn1.to_out.0"]  # 12 x 8
    for path, adapter in attached.adapters.items():
        num_out, num_in = adapter.shape
        assert torch.equal(adapter.get_buffer("A"), wide.get_buffer("A")[:, :num_in]), path
        assert torch.equal(adapter.get_buffer("B"), tall.get_buffer("B")[:num_out]), path
    same = [attached.adapters[path].get_buffer("A").data_ptr() for path in ("attn1.to_q", "attn2.to_q")]
    assert same[0] == same[1], "equally shaped matrices hold one tensor"


# One buffer.


@paired_of_each_method
def test_parameters_and_gradients_live_in_one_buffer(variant: str) -> None:
    model, attached = make_pack(variant, moved=0.3)
    x, context = make_inputs()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trainable) == attached.flat.numel()

    def check() -> None:
        for parameter in trainable:
            assert parameter.grad is not None
            assert parameter.untyped_storage().data_ptr() == attached.flat.untyped_storage().data_ptr()
            assert parameter.grad.untyped_storage().data_ptr() == attached.grad.untyped_storage().data_ptr()
            offset = parameter.data_ptr() - attached.flat.data_ptr()
            assert parameter.grad.data_ptr() - attached.grad.data_ptr() == offset
            assert parameter.grad.stride() == parameter.stride()

    check()
    model(x, context).square().sum().backward()
    check()
    once = attached.grad.clone()
    assert once.abs().sum() > 0
    model(x, context).square().sum().backward()
    check()
    torch.testing.assert_close(attached.grad, 2 * once)
    attached.zero_grad()
    check()
    assert not attached.grad.any()
    expected = torch.cat([parameter.detach().flatten() for parameter in trainable]).sort().values
    assert torch.equal(attached.flat.flatten().sort().values, expected), "no value lies twice or nowhere"


@one_of_each
def test_gradients_come_back_after_a_foreign_zero_grad(variant: str) -> None:
    model, attached = make_pack(variant, moved=0.3)
    model(*make_inputs()).square().sum().backward()
    once = attached.grad.clone()
    model.zero_grad(set_to_none=True)
    model(*make_inputs()).square().sum().backward()
    assert torch.equal(attached.grad, once)


@one_of_each
def test_writing_into_flat_changes_the_model(variant: str) -> None:
    model, attached = make_pack(variant, moved=0.1)
    x, context = make_inputs()
    before = model(x, context)
    kept = attached.flat.clone()
    attached.flat[1] += 0.5
    after = model(x, context)
    rows = len(x) // len(SEEDS)
    assert relative_error(after[rows : 2 * rows], before[rows : 2 * rows]) > 1e-4
    assert torch.equal(after[:rows], before[:rows])
    attached.flat.copy_(kept)
    assert torch.equal(model(x, context), before)


@one_of_each
def test_moving_or_casting_after_attach_is_refused_and_a_copy_is_free(variant: str) -> None:
    model, attached = make_pack(variant, dtype=torch.float32, moved=0.1)
    with pytest.raises(RuntimeError, match="move or cast the model before attach, not after"):
        model.double()
    model.to("cpu")  # where it is already
    twin = copy.deepcopy(model)
    x, context = make_inputs(dtype=torch.float32)
    before = twin(x, context)
    attached.flat.zero_()
    assert torch.equal(twin(x, context), before), "a copy does not share the pack's memory"
    assert twin.double()(x.double(), context.double()).dtype == torch.float64


# Detaching.


@paired_of_each_method
def test_detach_restores_the_model_bit_for_bit(variant: str) -> None:
    model = make_model(torch.float32)
    model.norm.weight.requires_grad_(False)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    x, context = make_inputs(dtype=torch.float32)
    before = model(x, context)
    _, attached = make_pack(variant, model=model, moved=0.3)
    model(x, context).square().sum().backward()
    attached.detach()
    assert dict(model.named_modules()) == modules
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    assert torch.equal(model(x, context), before)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    make_pack(variant, model=model)  # and may be attached to again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("attn1.to_q.A"), r"lacks tensor 'attn1\.to_q\.A'"),
        (lambda state: state.update(more=torch.zeros(1)), "has an unknown tensor 'more'"),
        (lambda state: state.update({"attn1.to_q.A": torch.zeros(2, 12)}), r"shape \(2, 12\), not \(3, 12\)"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_is_written(change: object, message: str) -> None:
    _, attached = make_pack("lora", moved=0.1)
    _, other = make_pack("lora", moved=0.2)
    state = other.state(0)
    change(state)  # type: ignore[operator]
    before = attached.flat.clone()
    with pytest.raises(BadInput, match=message):
        attached.load_state(0, state)
    assert torch.equal(attached.flat, before)


# Names of methods.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dlora", rf"unknown method 'dlora'; did you mean .*delora.*\? \(methods: {', '.join(METHODS)}\)"),
        ("quux", r"unknown method 'quux' \(methods: lora"),
        ("", r"unknown method '' \(methods"),
        ("delora:start=eq8", "option 'start' of method 'delora' is 'eq8', not one of: eq9, live, zero_b"),
        ("delora:begin=eq9", r"method 'delora' has no option 'begin' \(options: start, norm\)"),
        ("delora:start", "option 'start' of method 'delora' is not of the form key=value"),
        ("delora:start=eq9,start=live", "option 'start' of method 'delora' is given twice"),
        ("lora:alpha=0", "option 'alpha' of method 'lora' is '0', not one of: 2r, a positive number"),
        ("lora:alpha=nan", "is 'nan', not one of"),
        ("etherplus:blocks=1.5", "is '1.5', not one of: 1, a positive whole number"),
    ],
)  # fmt: skip
def test_bad_methods_are_named_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


def test_canonical_text_has_every_option_and_reads_back() -> None:
    assert parse_method("delora").canonical == "norm=columns,start=eq9"
    assert parse_method(" dora : norm_grad = full , alpha=16 ").canonical == (
        "alpha=16,axis=rows,divisor=r,init=kaiming,lr_ratio=1,norm_grad=full"
    )
    for variant in [*VARIANTS, "lora:alpha=1.23456789", "lora:alpha=0.1"]:
        spec = parse_method(variant)
        assert parse_method(f"{spec.name}:{spec.canonical}") == spec


def test_settings_that_differ_have_texts_that_differ() -> None:
    assert parse_method("lora:alpha=16").canonical == parse_method("lora:alpha=16.0").canonical
    assert parse_method("lora:alpha=1.2345678").canonical != parse_method("lora:alpha=1.2345679").canonical
    assert len({(parse_method(v).name, parse_method(v).canonical) for v in VARIANTS}) == len(set(VARIANTS))


def test_labels_show_what_is_not_default() -> None:
    assert parse_method("delora").label == "DeLoRA"
    assert parse_method("delora:start=eq9").label == "DeLoRA"
    assert parse_method("delora:norm=scalar,start=zero_b").label == "DeLoRA (norm=scalar, start=zero_b)"
    assert parse_method("lora:alpha=16").label == "LoRA (alpha=16)"
    labels = {method.label for method in METHODS.values()}
    colors = {method.color for method in METHODS.values()}
    assert len(labels) == len(colors) == len(METHODS)


def test_every_registered_class_is_found() -> None:
    for name, method in METHODS.items():
        assert get_class(name).__name__ == method.cls
    with pytest.raises(BadInput, match="unknown method 'nolora'; did you mean"):
        get_class("nolora")


def test_methods_are_read_without_torch() -> None:
    code = "import sys, adapters; adapters.parse_method('delora'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
