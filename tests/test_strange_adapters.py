"""Adapters as strangers have them: names of every kind, starts that changed W0, what is no number: read right or refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor

from adapters import BadInput
from adapters.foreign_names import name_method, name_model
from adapters.inject import ATTENTION_PROJECTIONS, find_targets
from adapters.layer_names import split_adapter_name, split_key, to_kohya, to_stability, unwrap
from adapters.lora_config import is_plain
from adapters.read_checkpoint import read_checkpoint
from adapters.starting_point import content_hash
from tests.make_checkpoints import load_unet
from tests.make_pipeline import make_pipeline
from training.export import main
from training.open_adapter import open_adapter

TARGETS = rf".*({'|'.join(ATTENTION_PROJECTIONS)})"
Factors = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline folder."""
    return make_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def factors(pipeline: Path) -> Factors:
    """A and B of rank 4 for every matrix by path."""
    generator = torch.Generator().manual_seed(0)
    return {
        path: (torch.randn(4, layer.in_features, generator=generator), torch.randn(layer.out_features, 4, generator=generator))
        for path, layer in find_targets(load_unet(pipeline)).items()
    }  # fmt: skip


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the export, check that it refuses with one line and code 2; returns the line."""

    def front(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return front


def write(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None, header: dict[str, Any] | None = None
) -> Path:
    """A file of tensors, with a configuration beside it or in its header."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "adapter_model.safetensors"
    described = {} if header is None else {"lora_adapter_metadata": json.dumps(header)}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, {"format": "pt", **described})
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return file


def named(factors: Factors, pattern: str, a: str = "lora_A.weight", b: str = "lora_B.weight") -> dict[str, Tensor]:
    """Factors in a program's names."""
    return {
        pattern.format(path) + role: part for path, pair in factors.items() for role, part in zip((a, b), pair, strict=True)
    }  # fmt: skip


def processors(factors: Factors) -> dict[str, Tensor]:
    """In the names of diffusers before 0.15."""
    stems = {path: path.removesuffix(".0").rpartition(".") for path in factors}
    names = {path: f"{stem}.processor.{kind}_lora" for path, (stem, _, kind) in stems.items()}
    return {
        f"{names[path]}.{role}.weight": part
        for path, pair in factors.items()
        for role, part in zip(("down", "up"), pair, strict=True)
    }


READ: dict[str, tuple[Callable[[Factors], dict[str, Tensor]], dict | None, dict | None, float]] = {
    "processors without unet": (processors, None, None, 1.0),
    "header of a U-Net alone": (lambda f: named(f, "{}."), None, {"lora_alpha": 16, "r": 4}, 4.0),
    "header, rank-stabilised": (lambda f: named(f, "{}."), None, {"lora_alpha": 16, "use_rslora": True}, 8.0),
    "header with its prefix": (lambda f: named(f, "unet.{}."), None, {"unet.lora_alpha": 16}, 4.0),
    "adapter's name": (
        lambda f: named(f, "unet.{}.", "lora_A.default_0.weight", "lora_B.default_0.weight"), None, None, 1.0
    ),
    "compiled": (lambda f: named(f, "base_model.model._orig_mod.{}."), {"lora_alpha": 8}, None, 2.0),
    "compiled inside": (
        lambda f: {key.replace(".attentions.", "._orig_mod.attentions."): t for key, t in named(f, "unet.{}.").items()},
        None, None, 1.0,
    ),
    "distributed": (lambda f: named(f, "module.base_model.model.module.{}."), {"lora_alpha": 8}, None, 2.0),
    "pattern of a compiled model": (
        lambda f: named(f, "base_model.model._orig_mod.{}."),
        {"lora_alpha": 4, "alpha_pattern": {"_orig_mod.down_blocks.*": 8, "_orig_mod.(mid|up)_block.*": 8}}, None, 2.0,
    ),
    "half precision": (lambda f: {k: t.bfloat16() for k, t in named(f, "unet.{}.").items()}, None, None, 1.0),
    "eight bits": (lambda f: {k: t.to(torch.float8_e4m3fn) for k, t in named(f, "unet.{}.").items()}, None, None, 1.0),
    "kohya, compiled": (
        lambda f: {
            key.replace("lora_unet_", "lora_unet__orig_mod_"): tensor
            for path, pair in f.items()
            for key, tensor in zip(
                (f"{to_kohya(path)}.lora_down.weight", f"{to_kohya(path)}.lora_up.weight", f"{to_kohya(path)}.alpha"),
                (*pair, torch.tensor(2.0)), strict=True,
            )
        },
        None, None, 0.5,
    ),
    "LyCORIS by itself": (
        lambda f: {key.replace("lora_unet_", "lycoris_"): t for key, t in named(
            {to_kohya(path): pair for path, pair in f.items()}, "{}.", "lora_down.weight", "lora_up.weight").items()},
        None, None, 1.0,
    ),
    "ComfyUI": (
        lambda f: {f"diffusion_model.{to_stability(key)}": t for key, t in named(f, "{}.").items()}, None, None, 1.0
    ),
    "activations as a start": (
        lambda f: named(f, "base_model.model.{}."), {"lora_alpha": 4, "init_lora_weights": "eva"}, None, 1.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_names_of_every_program_are_read_with_their_strength(case: str, factors: Factors, tmp_path: Path) -> None:
    make, config, header, scale = READ[case]
    tensors = make(factors)
    checkpoint = read_checkpoint(write(tmp_path, tensors, config, header))
    assert set(checkpoint.shapes) == set(factors)
    stored = {split_key(split_adapter_name(unwrap(key))[0]): t.float() for key, t in tensors.items()}
    alpha = checkpoint.spec.options["alpha"]
    strength = (2 * checkpoint.rank if alpha == "2r" else float(str(alpha))) / checkpoint.rank
    for path in factors:
        own = checkpoint.tensors(path)
        a, b = stored[path, "A"], stored[path, "B"]
        torch.testing.assert_close(strength * own["B"] @ own["A"], scale * b @ a)


# Starts that changed W0.


def make_started(pipeline: Path, folder: Path, init: Any) -> dict[str, Tensor]:
    """A LoRA that PEFT has started from this, moved a little and saved; the weights that it applied, by path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EVA's is not set up, as in a file that is opened
        model = peft.get_peft_model(
            load_unet(pipeline), LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=init)
        )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(load_unet(pipeline), str(folder)).merge_and_unload()
    return {path: layer.weight.detach() for path, layer in find_targets(merged).items()}


@pytest.mark.usefixtures("draws_warm")
@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "olora"])
def test_every_start_is_measured_and_merged_as_peft_does(init: Any, pipeline: Path, tmp_path: Path) -> None:
    expected = make_started(pipeline, tmp_path / "theirs", init)
    flags = ("--model", str(pipeline), "--out")
    assert main(["--inspect", str(tmp_path / "theirs"), *flags, str(tmp_path / "seen.png")]) == 0
    measured = pd.read_csv(tmp_path / "seen.csv").set_index("matrix")["distance"].to_dict()
    assert main([str(tmp_path / "theirs"), "--to", "merged", *flags, str(tmp_path / "merged")]) == 0
    merged = _merged(tmp_path / "merged")
    plain = {path: layer.weight.detach() for path, layer in find_targets(load_unet(pipeline)).items()}
    for path, weight in expected.items():
        torch.testing.assert_close(merged[path], weight, rtol=1e-5, atol=1e-6)
        assert measured[path] == pytest.approx(float((weight - plain[path]).norm()), rel=1e-3)


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "loftq", "lora_ga", "of_tomorrow"])
def test_a_start_that_cannot_be_made_again_is_refused(
    init: str, factors: Factors, tmp_path: Path, refused: Callable[..., str]
) -> None:
    config = {"lora_alpha": 4, "init_lora_weights": init}
    line = refused("--inspect", write(tmp_path, named(factors, "base_model.model.{}."), config))
    assert f"init_lora_weights={init}: W0 was changed" in line
    write(tmp_path, named(factors, "{}."), header=config)
    (tmp_path / "adapter_config.json").unlink()
    assert f"init_lora_weights={init}" in refused("--inspect", tmp_path)


def test_a_header_that_changes_w0_is_refused(factors: Factors, tmp_path: Path, refused: Callable[..., str]) -> None:
    write(tmp_path, named(factors, "unet.{}."), header={"unet.lora_alpha": 4, "unet.init_lora_weights": "pissa"})
    assert "init_lora_weights=pissa: that is read from HF PEFT's own folders alone" in refused("--inspect", tmp_path)


def test_a_variant_of_lora_is_no_plain_one() -> None:
    for key, value in (("kasa_config", {}), ("use_qalora", False), ("velora_config", None), ("use_rslora", True)):
        assert is_plain({key: value}, "file")
    for key, value in (
        ("kasa_config", {"beta": 1}),
        ("use_qalora", True),
        ("lora_bias", True),
        ("use_of_tomorrow", True),
    ):
        assert not is_plain({key: value}, "file")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("layer_replication", [[0, 1], [0, 1]], "layers of W0 stand several times"),
        ("target_parameters", ["attn1.weight"], "no linear layer's weight"),
        ("trainable_token_indices", [3], "words of an embedding"),
        ("alora_invocation_tokens", [1, 2], "only behind the words that call it"),
    ],
)
def test_factors_that_are_of_no_single_layer_are_refused(
    key: str, value: Any, why: str, factors: Factors, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """And so is a variant that the installed PEFT does not know: PEFT drops the key, and what is left is plain LoRA."""
    tensors, plain = named(factors, "base_model.model.{}."), {"lora_alpha": 4}
    line = refused("--inspect", write(tmp_path, tensors, plain | {key: value}))
    assert f"has {key}=" in line
    assert why in line
    header = write(tmp_path / "header", named(factors, "unet.{}."), None, {"unet.lora_alpha": 4, f"unet.{key}": value})
    assert why in refused("--inspect", header)
    assert read_checkpoint(write(tmp_path, tensors, plain | {key: None})).spec.name == "lora"
    with pytest.raises(BadInput, match="has use_of_tomorrow, which the installed PEFT .* does not know"):
        read_checkpoint(write(tmp_path, tensors, plain | {"use_of_tomorrow": True}))


def test_the_hash_of_a_start_knows_what_was_taken_off(pipeline: Path, factors: Factors, tmp_path: Path) -> None:
    tensors = named(factors, "base_model.model.{}.")
    plain = {"lora_alpha": 4, "r": 4}
    hashes = [
        content_hash(read_checkpoint(write(tmp_path / str(number), tensors, plain | config)))
        for number, config in enumerate(({}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"use_dora": False}))
    ]  # fmt: skip
    assert hashes[0] == hashes[3], "a plain start keeps its hash"
    assert len(set(hashes)) == 3


# What is of another model, of another method, or no number.


@pytest.mark.parametrize(
    ("name", "looks_like"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "a diffusion transformer"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "a diffusion transformer"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "a language model"),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", "a diffusion transformer|a language model"),
        ("base_model.model.encoder.layer.3.attention.self.query.lora_A.weight", "BERT or T5"),
        ("base_model.model.my_net.fc.lora_A.weight", "no Stable Diffusion has a matrix 'my_net.fc'"),
    ],
)
def test_another_model_is_named_by_what_it_looks_like(
    name: str, looks_like: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    up = name.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
    write(tmp_path, {name: torch.ones(2, 8), up: torch.ones(8, 2)}, {"lora_alpha": 2})
    line = refused("--inspect", tmp_path)
    assert "is not of a model that Plateau knows" in line
    assert any(part in line for part in looks_like.split("|"))


def test_no_name_of_stable_diffusion_is_taken_for_anothers(factors: Factors) -> None:
    names = [*factors, *map(to_kohya, factors), "lora_te1_text_model_encoder_layers_3_mlp_fc1.alpha",
             "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight", "add_embedding.linear_1"]  # fmt: skip
    assert name_model(names) is None


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("lora_unet_x.lora_mid.weight", "Tucker"),
        ("unet.mid_block.proj.base_layer.bias", "a bias"),
        ("unet.mid_block.proj.lora_B.bias", "LoRA with biases"),
        ("bundle_emb.a.string_to_param", "OneTrainer"),
        ("lora_unet_x.something", ""),
    ],
)
def test_tensors_of_other_methods_are_named(key: str, method: str) -> None:
    assert (method in name_method(key)) if method else not name_method(key)


def test_what_is_no_whole_adapter_is_refused(factors: Factors, tmp_path: Path, refused: Callable[..., str]) -> None:
    plain = named(factors, "unet.{}.")
    first = next(iter(plain))

    def line(tensors: dict[str, Tensor], name: str = "a.safetensors") -> str:
        save_file(tensors, tmp_path / name)
        return refused("--inspect", tmp_path / name)

    assert "several adapters, by name 'a', 'b'" in line(
        {key.replace(".weight", f".{name}.weight"): t.clone() for name in "ab" for key, t in plain.items()}
    )
    assert "twice, with a wrapper" in line(plain | {first.replace("unet.", "unet._orig_mod."): plain[first].clone()})
    assert "no floating-point numbers" in line(plain | {first: plain[first].to(torch.int8)})
    assert "do not multiply" in line(plain | {first: plain[first][:0]})
    second = first.replace("lora_A", "lora_B")
    assert "do not multiply" in line(plain | {first: plain[first][:0], second: plain[second][:, :0]})
    for other in ("", "base_model.model.unet."):
        assert "twice, under different names" in line(plain | {first.replace("unet.", other, 1): plain[first] + 1})
    kohya = to_kohya(first.removeprefix("unet.").removesuffix(".lora_A.weight")) + ".lora_down.weight"
    assert "twice, under different names" in line(plain | {kohya: plain[first] + 1})
    assert "holds no adapter" in line({})
    assert "part 1 of 2" in line(plain, "adapter_model-00001-of-00002.safetensors")
    (tmp_path / "empty.safetensors").touch()
    assert "damaged or no safetensors file" in refused("--inspect", tmp_path / "empty.safetensors")
    assert "safetensors files: name the one" in refused("--inspect", tmp_path)
    alpha = first.removesuffix("lora_A.weight") + "alpha"
    assert "alpha of" in line(plain | {alpha: torch.ones(3)})


@pytest.mark.usefixtures("draws_warm")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_that_is_not_finite_is_inspected_and_not_exported(
    value: float, pipeline: Path, factors: Factors, tmp_path: Path, refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tensors = named(factors, "unet.{}.")
    last = list(tensors)[-1]
    file = write(tmp_path, tensors | {last: torch.full_like(tensors[last], value)})
    for to in ("peft", "diffusers", "kohya", "merged", "lora-svd"):
        line = refused(file, "--to", to, "--model", pipeline, "--out", tmp_path / "out")
        assert "holds NaN or infinity in" in line
        assert not (tmp_path / "out").exists()
    assert main(["--inspect", str(file), "--out", str(tmp_path / "seen.png")]) == 0
    assert "note     NaN or infinity in" in capsys.readouterr().out


def test_a_configuration_of_other_tensors_is_refused(factors: Factors, tmp_path: Path) -> None:
    tensors, alpha = named(factors, "base_model.model.{}."), {"lora_alpha": 4}
    path = next(iter(factors))
    magnitudes = {
        f"base_model.model.{path}.lora_magnitude_vector": torch.ones(len(b)) for path, (_, b) in factors.items()
    }
    none: dict[str, Tensor] = {}
    cases: list[tuple[dict[str, Any], dict[str, Tensor], str]] = [
        ({"r": 16}, none, "has rank 4, its configuration says 16"),
        ({"r": 4, "rank_pattern": {path: 2}}, none, "has rank 4, its configuration says 2"),
        ({"use_dora": True}, none, "lacks DoRA's magnitudes"),
        ({"use_dora": False}, magnitudes, "holds DoRA's magnitudes"),
        ({"r": 16, "rank_pattern": {".*": 4}}, none, ""),
        ({}, magnitudes, ""),
        ({"use_dora": True}, magnitudes, ""),
    ]
    for config, more, why in cases:
        file = write(tmp_path, tensors | more, alpha | config)
        if why:
            with pytest.raises(BadInput, match=why):
                read_checkpoint(file)
        else:
            assert read_checkpoint(file).rank == 4
    with pytest.raises(BadInput, match="lacks DoRA's magnitudes"):
        read_checkpoint(write(tmp_path / "header", named(factors, "unet.{}."), None, {"unet.use_dora": True}))


def test_a_matrix_is_a_kernel_of_one_pixel(pipeline: Path, factors: Factors, tmp_path: Path) -> None:
    """Programs write either for the other."""
    kernels = {key: tensor[..., None, None] for key, tensor in named(factors, "unet.{}.").items()}
    seen = [
        open_adapter(write(tmp_path / name, tensors), str(pipeline)).checkpoint.of_unet()
        for name, tensors in (("plain", named(factors, "unet.{}.")), ("kernels", kernels))
    ]
    assert seen[0].shapes == seen[1].shapes
    assert seen[0].state.keys() == seen[1].state.keys()
    for key, tensor in seen[0].state.items():
        assert torch.equal(tensor, seen[1].state[key])


def test_damaged_configurations_are_one_line(factors: Factors, tmp_path: Path) -> None:
    tensors = named(factors, "base_model.model.{}.")
    for config in ({"lora_alpha": "big"}, {"lora_alpha": None}, {"lora_alpha": 4, "alpha_pattern": [1]},
                   {"peft_type": "HRA", "r": "x"}, {"peft_type": None}):  # fmt: skip
        with pytest.raises(BadInput) as caught:
            read_checkpoint(write(tmp_path, tensors, config))
        assert "\n" not in str(caught.value)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(BadInput, match="more than 100 deep"):
        read_checkpoint(tmp_path)


def _merged(folder: Path) -> dict[str, Tensor]:

    unet = UNet2DConditionModel.from_pretrained(folder)
    return {path: layer.weight.detach() for path, layer in find_targets(unet).items()}
