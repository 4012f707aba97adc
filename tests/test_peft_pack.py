"""HF PEFT's own tuners in Plateau's loop: against PEFT itself, against our native methods, and what is refused."""

from __future__ import annotations

import builtins
import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adapters import BadInput, get_class, parse_method, peft_format
from adapters.check import make_inputs
from adapters.inject import attach, find_targets
from adapters.peft_merge import merge_to_copy
from adapters.peft_pack import PeftPack
from adapters.peft_tuner import list_types, no_build_on_cpu
from adapters.peft_types import PACKED
from adapters.toy import Model, make_model
from analysis.series import method_label
from slurm.estimate.need import Estimate, Pack
from sweeps import lr_robustness
from sweeps.options import run_driver
from sweeps.plan import is_packable
from tests.make_adapters import make_pack, relative_error
from tests.make_driver import drive_studio
from tests.make_studio import Studio
from tests.test_loop import make_cell
from training.demand import Cost
from training.dynamics import Dynamics
from training.store import find_runs

ROOT = Path(__file__).resolve().parents[1]
TUNERS = (
    "boft:boft_block_size=2", "hra", "hra:r=4", "ia3", "oft:oft_block_size=2",
    "oft:oft_block_size=4,use_cayley_neumann=false", "vera:r=4", "lora:r=2,lora_alpha=4", "lora:r=2,use_dora=true",
    "lora:r=2,init_lora_weights=pissa", "delora:r=2", "loha:r=2", "lokr:r=2", "osf",
)  # fmt: skip
every_tuner = pytest.mark.parametrize("tuner", TUNERS)


def make_tuner(
    tuner: str, *, seed: int = 5, dtype: torch.dtype = torch.float32, moved: float = 0.0
) -> tuple[Model, PeftPack]:
    """The toy model with a tuner in it, at its start or away from it."""
    model = make_model(dtype)
    pack = attach(model, parse_method(f"peft:{tuner}"), seeds=[seed], rank=3)
    assert isinstance(pack, PeftPack)
    noise = torch.randn(pack.flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pack.flat += (moved * noise).to(dtype)
    return model, pack


def by_identity(layer: nn.Module, num_in: int, dtype: torch.dtype) -> Tensor:
    """The effective weight as the layer applies it: an oracle that knows nothing of merging."""
    zero = layer(torch.zeros(1, num_in, dtype=dtype))
    return (layer(torch.eye(num_in, dtype=dtype)) - zero).mT.detach()


# The pack.


@every_tuner
def test_weight_and_distance_are_those_of_the_forward(tuner: str) -> None:
    model, pack = make_tuner(tuner, moved=0.1)
    plain = make_model(torch.float32)
    for path, adapter in pack.adapters.items():
        base = plain.get_submodule(path).weight.detach()
        expected = by_identity(model.get_submodule(path), base.shape[1], torch.float32)
        assert relative_error(adapter.weight()[0], expected) < 1e-5
        distance = (expected.double() - base.double()).norm()
        assert abs(float(adapter.distance()[0] - distance)) < 1e-5 * float(distance) + 1e-6 * float(base.norm())
    for stack in pack.stacks:
        for name, value in {"weight": stack.adapter.weight(), **stack.adapter.readings()}.items():
            parts = [
                a.weight() if name == "weight" else a.readings()[name] for a in map(pack.adapters.get, stack.paths)
            ]
            torch.testing.assert_close(value, torch.stack(parts, 1))


@every_tuner
def test_model_computes_what_the_merged_weights_do(tuner: str) -> None:
    model, pack = make_tuner(tuner, moved=0.1)
    inputs = make_inputs([5], torch.float32)
    out = model(*inputs)
    biases = {f"{p}.bias": merge_to_copy(model.get_submodule(p))[1] for p in pack.adapters}
    merged = {f"{path}.weight": weight for path, weight in pack.merged(0).items()}
    changed = merged | {name: bias for name, bias in biases.items() if bias is not None}
    assert relative_error(torch.func.functional_call(make_model(torch.float32), changed, inputs), out) < 1e-5
    assert torch.equal(model(*inputs), out), "merging to a copy leaves no trace"


@every_tuner
def test_start_comes_from_the_seed_alone(tuner: str) -> None:
    _, one = make_tuner(tuner)
    torch.rand(7)  # the global state is somewhere else now
    before = torch.get_rng_state()
    model, again = make_tuner(tuner)
    assert torch.equal(torch.get_rng_state(), before), "the global state is left alone"
    assert torch.equal(one.flat, again.flat)
    start = relative_error(
        model(*make_inputs([5], torch.float32)), make_model(torch.float32)(*make_inputs([5], torch.float32))
    )
    assert start < 1e-5
    distances = torch.cat([stack.adapter.distance() for stack in again.stacks], 1)
    assert (distances < 1e-6).all() or "pissa" in tuner


@every_tuner
def test_detach_restores_the_model_bit_for_bit(tuner: str) -> None:
    model = make_model(torch.float32)
    model.norm.weight.requires_grad_(False)
    modules, state = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attributes = set(vars(model))
    pack = attach(model, parse_method(f"peft:{tuner}"), seeds=[1], rank=3)
    model(*make_inputs([5], torch.float32)).square().sum().backward()
    assert pack.grad.any()
    pack.detach()
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    assert set(vars(model)) == attributes
    make_tuner(tuner)  # and another may come


@every_tuner
def test_training_moves_every_tensor_in_the_buffer_and_nothing_else(tuner: str) -> None:
    model, pack = make_tuner(tuner, moved=0.05)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == pack.num_parameters() == pack.flat.shape[1]
    for parameter in trained:
        assert parameter.untyped_storage().data_ptr() == pack.flat.untyped_storage().data_ptr()
        assert parameter.grad is not None
        assert parameter.grad.untyped_storage().data_ptr() == pack.grad.untyped_storage().data_ptr()
    model(*make_inputs([5], torch.float32)).square().sum().backward()
    once = pack.grad.clone()
    pack.zero_grad()
    model(*make_inputs([5], torch.float32)).square().sum().backward()
    assert torch.equal(pack.grad, once)
    assert (once != 0).float().mean() > 0.5
    state = pack.state(0)
    pack.flat.zero_()
    pack.load_state(0, state)
    assert all(torch.equal(pack.state(0)[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("tuner", ["boft:boft_block_size=2", "hra", "ia3", "oft:oft_block_size=2", "vera:r=4"])
def test_saved_folder_opens_in_peft(tuner: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, pack = make_tuner(tuner, moved=0.1)
    inputs = make_inputs([5], torch.float32)
    out = model(*inputs)
    peft_format.save(tmp_path / "adapter", pack, 0, base_model="toy")
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "toy"
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    plain = make_model(torch.float32)
    with no_build_on_cpu({}):
        opened = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert relative_error(opened.base_model.model(*inputs), out) < 1e-5


def test_distance_equals_the_native_methods() -> None:
    """PEFT's LoRA with our numbers in it: merge-to-copy against the closed form."""
    model, native = make_pack("lora:alpha=4", [5], torch.float32, rank=2, moved=0.2)
    _, pack = make_tuner("lora:r=2,lora_alpha=4")
    names = {"A": "lora_A.weight", "B": "lora_B.weight"}
    state = {key.rpartition(".")[0] + "." + names[key.rpartition(".")[2]]: t for key, t in native.state(0).items()}
    pack.load_state(0, state)
    for path, adapter in pack.adapters.items():
        torch.testing.assert_close(adapter.distance(), native.adapters[path].distance(), rtol=1e-5, atol=1e-6)
    inputs = make_inputs([5], torch.float32)
    assert relative_error(pack._unet(*inputs), model(*inputs)) < 1e-5


def test_dynamics_are_recorded_without_directions() -> None:
    _, pack = make_tuner("hra", moved=0.1)
    dynamics = Dynamics(pack)
    dynamics.remember()
    dynamics.record(0)
    dynamics.snapshot(0)
    assert dynamics.last_distances()[0] > 0


def test_a_diverged_tuner_has_a_distance_that_is_no_nan() -> None:
    _, pack = make_tuner("hra")
    pack.flat.zero_()  # reflections along nothing
    assert not torch.cat([stack.adapter.distance() for stack in pack.stacks], 1).isnan().any()


# Names, options, labels.


def test_options_are_peft_s_own_and_defaults_change_nothing() -> None:
    assert parse_method("peft:boft").canonical == parse_method("peft:BOFT:boft_block_size=4").canonical == ""
    spec = parse_method("peft:lora:use_dora=true,r=4,lora_alpha=16,init_lora_weights=gaussian")
    assert spec.canonical == "init_lora_weights=gaussian,lora_alpha=16,r=4,use_dora=True"
    assert parse_method(f"{spec.name}:{spec.canonical}") == spec
    assert spec.label == method_label(spec.name, spec.canonical)
    assert spec.label.startswith("PEFT LORA (")
    assert spec.label.endswith("use_dora=True)")
    assert method_label("peft:hra") == "PEFT HRA"
    assert method_label("peft:oft") == "PEFT OFT (unpacked)"
    assert is_packable("peft:hra")
    assert not is_packable("peft:oft")
    assert is_packable("lora")
    assert not get_class("peft:hra").uses_rank


def test_time_is_predicted_at_the_speed_of_a_run_alone() -> None:
    measured = Estimate({1: Cost(1.0, 1.0), 4: Cost(2.0, 1.0), 8: Cost(3.0, 1.0)})
    packed = make_cell("lora", steps=100, num_inference_steps=0)
    alone = make_cell("peft:oft", steps=100, num_inference_steps=0)
    packs = [Pack.of("packed", [packed] * 4, {}), Pack.of("alone", [alone], {})]
    assert [measured.pack_s(pack.demand) for pack in packs] == pytest.approx([4 * 50, 100])


def test_names_are_labelled_without_loading_peft_or_torch() -> None:
    code = "import sys; from analysis.series import method_label; method_label('peft:hra', 'r=4'); " \
           "assert not {'torch', 'peft'} & set(sys.modules)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("peft:bft", r"^PEFT type 'bft' does not exist; did you mean boft.*\? \(types: .*boft, .*vera"),
        ("peft:", r"^PEFT type '' does not exist \(types"),
        ("peft:prompt_tuning", "^PEFT type 'prompt_tuning' adapts no linear layers"),
        ("peft:boft:block_size=4", r"has no option 'block_size'; did you mean boft_block_size.*\(options: .*boft_dropout"),
        ("peft:boft:boft_block_size=big", "option 'boft_block_size' of method 'peft:boft' is 'big', not one of: a whole number"),
        ("peft:boft:boft_block_size=2.5", "is '2.5', not one of: a whole number"),
        ("peft:hra:apply_GS=1", "is '1', not one of: true, false"),
        ("peft:hra:r=4,r=8", "option 'r' of method 'peft:hra' is given twice"),
        ("peft:hra:r", "not of the form key=value"),
        ("peft:lora:target_modules=to_q", "sets no option 'target_modules'"),
        ("peft:lora:bias=all", "sets no option 'bias'"),
        ("peft:boft:boft_block_size=4,boft_block_num=2", "^PEFT refuses method 'peft:boft': You can only specify either"),
    ],
)  # fmt: skip
def test_bad_tuners_are_named_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tuner", "message"),
    [
        ("boft:boft_block_size=5", "peft's boft does not fit this model: .*divisible"),
        ("lora:r=2,lora_dropout=0.5", "peft:lora draws random numbers at every call"),
        ("pvera", "draws random numbers at every call"),
        ("beft", "beft does not fit this model: .*bias"),
        ("c3a", "c3a does not fit this model: The block size"),
    ],
)
def test_a_tuner_that_does_not_fit_is_refused_and_leaves_the_model_as_it_was(tuner: str, message: str) -> None:
    model = make_model(torch.float32)
    modules, state = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(BadInput, match=f"(?i){message}") as caught:
        attach(model, parse_method(f"peft:{tuner}"), seeds=[1], rank=3)
    assert "\n" not in str(caught.value)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(find_targets(model)) == 8


def test_a_pack_of_several_replicas_of_a_type_that_does_not_pack_is_refused() -> None:
    with pytest.raises(BadInput, match=r"'peft:oft' runs one replica at a time \(unpacked\), given: 2 seeds"):
        attach(make_model(), parse_method("peft:oft:oft_block_size=2"), seeds=[1, 2], rank=3)


# Packs of several replicas.

OPTIONS_OF_PACKED = {"boft": "boft_block_size=2", "vera": "r=4", "ia3": ""}
SEEDS = (5, 9, 5)


def make_replicas(tuner: str, seeds: Sequence[int] = SEEDS, moved: float = 0.0) -> tuple[Model, PeftPack]:
    """The toy model with several replicas, each away from its start by noise of its place."""
    model = make_model(torch.float32)
    pack = attach(model, parse_method(f"peft:{tuner}"), seeds=list(seeds), rank=3)
    assert isinstance(pack, PeftPack)
    for row in range(len(seeds)):
        noise = torch.randn(pack.flat.shape[1], generator=torch.Generator().manual_seed(row), dtype=torch.float64)
        pack.flat[row] += (moved * noise).to(pack.flat)
    return model, pack


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_replicas_are_each_as_if_alone(kind: str, tmp_path: Path) -> None:
    """Starts, outputs, gradients, distances, merged weights, states and files of every type that packs."""
    tuner = f"{kind}:{OPTIONS_OF_PACKED.get(kind, 'r=2')}".rstrip(":")
    model, pack = make_replicas(tuner, moved=0.1)
    inputs = [torch.cat([part.roll(row, -1) for row in range(len(SEEDS))]) for part in make_inputs([5], torch.float32)]
    out = model(*inputs).unflatten(0, (len(SEEDS), -1))
    out.square().sum().backward()
    distances = {path: adapter.distance() for path, adapter in pack.adapters.items()}
    stacked = [stack.adapter.readings()["distance"] for stack in pack.stacks]
    for row, seed in enumerate(SEEDS):
        alone, one = make_replicas(tuner, [seed])
        start = one.flat.clone()
        noise = torch.randn(one.flat.shape[1], generator=torch.Generator().manual_seed(row), dtype=torch.float64)
        one.flat[0] += (0.1 * noise).to(one.flat)
        torch.testing.assert_close(one.flat[0], pack.flat[row], rtol=0, atol=0, msg=f"the start {start} of {seed}")
        own = [part.chunk(len(SEEDS))[row] for part in inputs]
        result = alone(*own)
        assert relative_error(out[row], result) < 1e-5
        result.square().sum().backward()
        assert relative_error(pack.grad[row], one.grad[0]) < 1e-4
        for path, adapter in one.adapters.items():
            torch.testing.assert_close(distances[path][row], adapter.distance()[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(pack.merged(row)[path], one.merged(0)[path], rtol=1e-5, atol=1e-6)
        for stack, found in zip(one.stacks, stacked, strict=True):
            torch.testing.assert_close(found[row], stack.adapter.readings()["distance"][0], rtol=1e-5, atol=1e-6)
        state = pack.state(row)
        assert all(torch.equal(state[key], tensor) for key, tensor in one.state(0).items())
        for place, whose, number in ((tmp_path / f"pack{row}", pack, row), (tmp_path / f"one{row}", one, 0)):
            peft_format.save(place, whose, number, base_model="toy")
        saved = [load_file(tmp_path / f"{name}{row}" / "adapter_model.safetensors") for name in ("pack", "one")]
        assert saved[0].keys() == saved[1].keys()
        assert all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])
    assert torch.equal(model(*inputs).unflatten(0, (len(SEEDS), -1)), out), "reading and writing leave no trace"
    plain = make_model(torch.float32)
    pack.detach()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_type_whose_frozen_tensors_hang_on_the_seed_says_how_it_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapters import peft_pack

    numbers = iter(range(100))
    monkeypatch.setattr(peft_pack, "_hash", lambda tensor: str(next(numbers)))
    model = make_model(torch.float32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(BadInput, match="draws frozen tensors for each seed: give --pack-size 1"):
        attach(model, parse_method("peft:hra"), seeds=[1, 2], rank=3)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_pack_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapters.peft_pack import Replicated

    whole = Replicated.forward
    monkeypatch.setattr(Replicated, "forward", lambda self, x: whole(self, x) * 1.01)
    with pytest.raises(BadInput, match="computes something else in a pack: give --pack-size 1"):
        attach(make_model(torch.float32), parse_method("peft:hra"), seeds=[1, 2], rank=3)


def test_missing_peft_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return whole(name, *args, **kwargs)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)  # type: ignore[arg-type]
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        BadInput, match="methods peft:<type> need HF PEFT, which cannot be loaded .*pip install peft"
    ) as e:
        parse_method("peft:boft")
    assert "\n" not in str(e.value)
    assert parse_method("lora").name == "lora"


def test_types_are_those_that_adapt_modules() -> None:
    types = list_types()
    assert {"boft", "hra", "ia3", "oft", "vera", "lora", "delora"} <= types.keys()
    assert not {"prompt_tuning", "p_tuning", "prefix_tuning"} & types.keys()


# Through the front door.


def test_a_tuner_trains_to_a_figure_and_is_found_again(studio: Studio, tmp_path: Path) -> None:
    flags = ("--method", "peft:hra:r=4", "peft:lokr:r=2", "lora", "--base-lr", "1e-2", "--multipliers", "1", "2",
             "--pack-size", "2", "--steps", "6", "--subjects", str(studio.folder / "subjects"), "1")  # fmt: skip
    done = drive_studio(studio, lr_robustness, tmp_path, *flags)
    assert done.code == 0, done.err
    assert "unpacked, one run at a time: peft:lokr (" in done.out
    assert "PEFT HRA (r=4)" in done.out
    assert (tmp_path / "lr_robustness" / "fig2_lr_robustness.png").exists()
    sizes = {run.run_id.split("-r")[0]: run.read()["provenance"]["pack_size"] for run in find_runs(tmp_path)}
    assert sizes | {"base": 1} == {"peft-hra": 2, "peft-lokr": 1, "lora": 2, "base": 1}
    run = next(run for run in find_runs(tmp_path) if run.run_id.startswith("peft-hra"))
    assert run.read()["cell"]["method"] == "peft:hra"
    assert {file.name for file in run.adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    distances = run.read_dynamics().groupby("step")["distance"].mean()
    assert distances[0] < 1e-4 < distances[6]
    assert len(run.read_norms())
    again = drive_studio(studio, lr_robustness, tmp_path, *flags, "--dry-run")
    assert "6 done, 0 to train" in again.out, again.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "peft:hra"), "no base rate of peft:hra"),
        (("--method", "peft:boft:boft_block_size=7", "--base-lr", "1"), "boft does not fit this model"),
        (("--method", "peft:hrra", "--base-lr", "1"), "did you mean hra"),
        (("--method", "/nowhere/mine.py", "--base-lr", "1"), "method file '/nowhere/mine.py' cannot be read"),
    ],
)
def test_front_door_refuses_in_one_line(
    arguments: tuple[str, ...], said: str, studio: Studio, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", studio.arguments(tmp_path, *arguments)[1:])
    assert run_driver(lr_robustness.RobustnessOptions, lr_robustness.drive, "") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert not find_runs(tmp_path)


# Every type that PEFT has.

OPTIONS = {
    "adalora": "total_step=10,init_r=2", "c3a": "block_size=4", "fourierft": "n_frequency=10", "miss": "r=2",
    "psoft": "r=2", "road": "group_size=4", "shira": "r=1", "supertuning": "sparsity=0.5",
    "vblora": "vector_length=4,num_vectors=8,topk=2,r=2", "waveft": "n_frequency=10", "gralora": "r=4,gralora_k=2",
}  # fmt: skip
"""What the types need whose defaults are too large for the toy model."""
REFUSED = {
    "ln_tuning": "is another layer after each merge", "lily": "cannot be merged", "poly": "task_ids",
    "pvera": "draws random numbers", "beft": "no bias", "adamss": "scikit-learn",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list_types())
def test_every_type_reads_twice_what_a_fresh_merge_gives_or_is_refused(kind: str) -> None:
    text = f"peft:{kind}:{OPTIONS[kind]}" if kind in OPTIONS else f"peft:{kind}"
    if kind in REFUSED and not (kind == "adamss" and importlib.util.find_spec("sklearn")):
        with pytest.raises(BadInput, match=REFUSED[kind]):
            attach(make_model(torch.float32), parse_method(text), seeds=[1], rank=2)
        return
    model, pack = make_tuner(text.removeprefix("peft:"), moved=0.05)
    plain = make_model(torch.float32)
    fresh = copy.deepcopy(model)
    readings = [{path: float(a.distance()[0]) for path, a in pack.adapters.items()} for _ in range(2)]
    assert readings[0] == readings[1]
    for path, distance in readings[0].items():
        layer, base = fresh.get_submodule(path), plain.get_submodule(path).weight.detach().double()
        layer.merge()
        expected = float((layer.get_base_layer().weight.detach().double() - base).norm())
        assert distance == pytest.approx(expected, rel=1e-5, abs=1e-6 * float(base.norm()))


@pytest.mark.parametrize("kind", ["xlora", "trainable_tokens", "prefix_tuning"])
def test_a_type_without_layers_says_what_it_does(kind: str) -> None:
    does = {"xlora": "mixes LoRAs", "trainable_tokens": "an embedding", "prefix_tuning": "learns prompts"}[kind]
    with pytest.raises(BadInput, match=f"'{kind}' adapts no linear layers: it .*{does}"):
        parse_method(f"peft:{kind}")
