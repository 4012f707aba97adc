"""Other people's loops, watched: HF's DreamBooth-LoRA style on the pocket, PEFT's tuners, parametrizations, hooks, wrappers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import DeloraConfig, HRAConfig, LoraConfig, OFTConfig
from torch import Tensor, nn
from torch.nn.utils import parametrize

import analysis.compact
from adapters import BadInput
from analysis.load import load
from tests.make_checkpoints import load_unet
from tests.make_runs import make_runs
from training.store import COLUMNS, RunFolder
from training.watch import watch

PROJECTIONS = ["to_k", "to_q", "to_v", "to_out.0"]


def batches(unet: UNet2DConditionModel, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents and text embeddings."""
    generator, config = torch.Generator().manual_seed(0), unet.config
    for _ in range(steps):
        yield (
            torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=generator),
            torch.randn(1, 5, config.cross_attention_dim, generator=generator),
        )


# HF's own loop with three lines added.


def dreambooth_lora(pipeline: Path, folder: Path, steps: int, config: Any) -> UNet2DConditionModel:
    """The training loop of diffusers' examples/dreambooth/train_dreambooth_lora.py, reduced to what it computes."""
    from training.watch import watch  # added

    noise_scheduler = DDPMScheduler.from_pretrained(pipeline, subfolder="scheduler")
    vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").requires_grad_(False)
    unet.add_adapter(config)
    params_to_optimize = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params_to_optimize, lr=1e-3)
    torch.manual_seed(0)
    with watch(unet, folder) as w:  # added
        for latents, encoder_hidden_states in batches(unet, steps):
            model_input = latents * vae.config.scaling_factor
            noise = torch.randn_like(model_input)
            timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (1,))
            noisy_model_input = noise_scheduler.add_noise(model_input, noise, timesteps)
            model_pred = unet(noisy_model_input, timesteps, encoder_hidden_states).sample
            loss = F.mse_loss(model_pred.float(), noise.float(), reduction="mean")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params_to_optimize, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            w.step(loss=loss)  # added
    return unet


def test_hfs_dreambooth_lora_loop_leaves_a_run(pocket: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=PROJECTIONS)
    unet = dreambooth_lora(pocket / "pipeline", tmp_path / "runs" / "watched" / "hf", 4, config)
    run = RunFolder(tmp_path / "runs" / "watched" / "hf")
    rows = run.read_dynamics()
    assert list(rows.columns) == list(COLUMNS["dynamics"])
    base = load_unet(pocket / "pipeline").state_dict()
    targets = [key.removesuffix(".weight") for key in base if key.endswith(tuple(f"{p}.weight" for p in PROJECTIONS))]
    assert set(rows["matrix"]) == set(targets)
    assert sorted(set(rows["step"])) == [0, 1, 2, 3, 4]
    assert (rows.loc[rows["step"] == 0, "distance"] == 0).all()
    last = rows[rows["step"] == 4].set_index("matrix")["distance"]
    for path in targets:
        layer = unet.get_submodule(path)
        merged = layer.get_base_layer().weight + layer.get_delta_weight("default")
        assert last[path] == pytest.approx(float((merged - base[f"{path}.weight"]).detach().double().norm()), rel=1e-3)
    assert (rows.loc[rows["step"] > 0, ["norm_a", "norm_b", "angle_a"]] > 0).all(axis=None)
    steps = run.read_steps()
    assert list(steps["step"]) == [1, 2, 3, 4]
    assert steps["loss"].notna().all()
    record = run.read()
    assert record["status"] == "finished"
    assert record["cell"]["steps"] == 4
    assert record["cell"]["rank"] == 4


def test_analysis_reads_a_watched_run(pocket: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_v"])
    dreambooth_lora(pocket / "pipeline", tmp_path / "runs" / "watched" / "hf", 2, config)
    results = load(tmp_path / "runs")
    assert list(results.runs["method"]) == ["watched"]
    frame = results.dynamics(["distance_rel"])
    assert (frame.loc[frame["step"] == 2, "distance_rel"] > 0).all()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=PROJECTIONS),
        LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=PROJECTIONS),
        DeloraConfig(r=4, delora_lambda=3, target_modules=PROJECTIONS),
        OFTConfig(r=0, oft_block_size=8, target_modules=PROJECTIONS, use_cayley_neumann=False),
        HRAConfig(r=4, target_modules=PROJECTIONS),
        peft.BOFTConfig(boft_block_size=4, target_modules=PROJECTIONS),
        peft.VeraConfig(r=4, target_modules=["attn1.to_q"]),
    ],
    ids=lambda config: (
        config.peft_type.value.lower()
        + "-dora" * getattr(config, "use_dora", False)
        + "-pissa" * (getattr(config, "init_lora_weights", "") == "pissa")
    ),
)
@pytest.mark.filterwarnings("ignore")  # PEFT's tuners warn of many things, and their answers are compared here
def test_any_tuner_of_peft_moves_as_its_merged_model(config: Any, pocket: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(load_unet(pocket / "pipeline"), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad(), watch(model, tmp_path / "w") as w:
        for parameter in trained:
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        w.step()
    rows = RunFolder(tmp_path / "w").read_dynamics()
    base, merged = load_unet(pocket / "pipeline").state_dict(), model.merge_and_unload().state_dict()
    last = rows[rows["step"] == 1].set_index("matrix")["distance"].to_dict()
    moved = {path: float((merged[f"{path}.weight"] - base[f"{path}.weight"]).double().norm()) for path in last}
    assert min(moved.values()) > 1e-3
    assert last == pytest.approx(moved, rel=1e-3)
    assert torch.isfinite(torch.tensor(list(last.values()))).all()


# Adapters that know nothing of PEFT.


class LowRankParametrization(nn.Module):
    """minLoRA's: W + B A."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, weight.shape[1])), nn.Parameter(torch.zeros(weight.shape[0], 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


class Wrapper(nn.Module):
    """cloneofsimo's LoraInjectedLinear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.dropout = linear, nn.Dropout(0.5)
        self.b, self.a = (
            nn.Parameter(torch.zeros(linear.out_features, 2)),
            nn.Parameter(torch.randn(2, linear.in_features)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.dropout(x @ self.a.mT @ self.b.mT)


def make_frozen() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).requires_grad_(False)


def parametrized() -> tuple[nn.Module, Tensor, Callable[[], Tensor]]:
    model = make_frozen()
    added = LowRankParametrization(model[2].weight)
    parametrize.register_parametrization(model[2], "weight", added)
    return model, added.b, lambda: added.b @ added.a


def hooked() -> tuple[nn.Module, Tensor, Callable[[], Tensor]]:
    model = make_frozen()
    a, b = torch.randn(2, 5), torch.zeros(4, 2)
    model[2].register_forward_hook(lambda _, x, out: out + x[0] @ a.mT @ b.mT)
    return model, b, lambda: b @ a


def wrapped() -> tuple[nn.Module, Tensor, Callable[[], Tensor]]:
    model = make_frozen()
    model[2] = Wrapper(model[2])
    return model, model[2].b, lambda: model[2].b @ model[2].a


def trainable() -> tuple[nn.Module, Tensor, Callable[[], Tensor]]:
    model = make_frozen()
    model[2].weight.requires_grad_(True)
    start = model[2].weight.detach().clone()
    return model, model[2].weight, lambda: model[2].weight - start


@pytest.mark.parametrize("make", [parametrized, hooked, wrapped, trainable], ids=lambda make: make.__name__)
def test_other_kinds_of_adapters_are_seen(
    make: Callable[[], tuple[nn.Module, Tensor, Callable[[], Tensor]]], tmp_path: Path
) -> None:
    model, moved, change = make()
    with torch.no_grad(), watch(model.train(), tmp_path / "w", wrappers=(Wrapper,)) as w:
        for _ in range(3):
            moved += torch.randn(moved.shape)
            w.step()
    rows = RunFolder(tmp_path / "w").read_dynamics()
    assert set(rows["matrix"]) == {"2"}
    assert rows["distance"].iloc[0] == pytest.approx(0, abs=1e-6)
    assert rows["distance"].iloc[-1] == pytest.approx(float(change().detach().norm()), rel=1e-5)
    assert model.training
    assert all(module.training for module in model.modules())


class Distributed(nn.Module):
    """As DDP wraps a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model


class Compiled(nn.Module):
    """As `torch.compile` does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def make_blocks() -> nn.Module:
    """A linear layer and a convolution in a block, both of which train."""
    block = nn.ModuleDict({"to_q": nn.Linear(4, 3, bias=False), "conv": nn.Conv2d(2, 2, 1, bias=False)})
    return nn.ModuleDict({"down_blocks": nn.ModuleList([block])})


@pytest.mark.parametrize("wrap", [Compiled, Distributed, lambda model: Compiled(with_lora(model))])
def test_wrappers_leave_no_trace_in_names(
    wrap: Callable[[nn.Module], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with watch(wrap(make_blocks()), tmp_path / "w"):
        pass
    (row,) = RunFolder(tmp_path / "w").read()["matrices"]
    assert (row["matrix"], row["block"], row["kind"]) == ("down_blocks.0.to_q", "down_blocks.0", "to_q")
    (line,) = capsys.readouterr().err.splitlines()
    assert "not watched" in line
    assert "conv" in line


def with_lora(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(model, LoraConfig(r=2, target_modules=["to_q", "conv"]))


def test_what_the_loop_does_not_tell_stays_empty(tmp_path: Path) -> None:
    model, moved, _ = trainable()
    with torch.no_grad(), watch(model, tmp_path / "runs" / "watched" / "w") as w:
        for loss in (None, 1.0):
            moved += 1
            w.step(loss=loss)
    (run,) = load(tmp_path / "runs").all_runs.to_dict("records")
    known = {"method": "watched", "options": "", "subject": "watched", "seed": 0, "steps": 2, "gauge_every": 1}
    cell = RunFolder(run["path"]).read()["cell"]
    assert {name: value for name, value in cell.items() if value is not None} == known | {"rank": cell["rank"]}
    assert run["series"] == "watched"
    steps = pa.parquet.read_table(next((tmp_path / "runs").rglob("steps/*.parquet")))
    assert steps["lr"].to_pylist() == [None, None]
    assert steps["loss"].to_pylist() == [None, 1.0]
    assert analysis.compact.main([str(tmp_path / "runs"), "--out", str(tmp_path / "copy")]) == 0
    assert load(tmp_path / "copy").trajectories("mean", ["distance_rel"])["step"].tolist() == [0, 1, 2]

    make_runs(tmp_path / "runs")
    with pytest.raises(BadInput, match=r"runs of 2 models in one folder: .*unknown"):
        load(tmp_path / "runs")
    assert set(load(tmp_path / "runs", model="unknown").runs["method"]) == {"watched"}


def test_the_optimizer_counts_by_itself(tmp_path: Path) -> None:
    model, _, change = trainable()
    optimizer = torch.optim.SGD([model[2].weight], lr=0.25)
    with watch(model, tmp_path / "w", every=2, optimizer=optimizer):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(1, 6)).sum().backward()
            optimizer.step()
    optimizer.step()
    run = RunFolder(tmp_path / "w")
    assert list(run.read_dynamics()["step"]) == [0, 2, 4, 5]
    assert list(run.read_steps()["lr"]) == [0.25] * 5
    assert run.read()["cell"]["steps"] == 5


def test_accelerates_accumulation_counts_once(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model, _, _ = trainable()
    model, optimizer = accelerator.prepare(
        model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    )
    with watch(accelerator.unwrap_model(model), tmp_path / "w", optimizer=optimizer):
        for _ in range(6):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.ones(1, 6)).sum())
                optimizer.step()
                optimizer.zero_grad()
    assert list(RunFolder(tmp_path / "w").read_dynamics()["step"]) == [0, 1, 2, 3]


def test_a_loop_that_fails_keeps_its_rows(tmp_path: Path) -> None:
    model, moved, _ = trainable()

    def loop() -> None:
        with torch.no_grad(), watch(model, tmp_path / "w") as w:
            moved.add_(1)
            w.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    run = RunFolder(tmp_path / "w")
    assert run.read()["status"] == "failed"
    assert "ZeroDivisionError" in run.read()["error"]
    assert list(run.read_dynamics()["step"]) == [0, 1]


def test_a_divergence_is_recorded_and_raises_nothing(tmp_path: Path) -> None:
    model, moved, _ = trainable()
    with torch.no_grad(), watch(model, tmp_path / "w") as w:
        moved += float("inf")
        w.step()
    assert RunFolder(tmp_path / "w").read_dynamics()["distance"].iloc[-1] > 1e38


def test_what_cannot_be_watched_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="no adapter and no trainable linear layer"),
        watch(make_frozen(), tmp_path / "w"),
    ):
        pass
    model, _, _ = trainable()
    with pytest.raises(BadInput, match="every is 0"), watch(model, tmp_path / "w", every=0):
        pass
    with watch(model, tmp_path / "w"):
        pass
    with pytest.raises(BadInput, match="holds a run already"), watch(model, tmp_path / "w"):
        pass
    merged = peft.get_peft_model(make_frozen(), LoraConfig(r=2, target_modules=["2"]))
    merged.merge_adapter()
    with pytest.raises(BadInput, match="merged into its weight"), watch(merged, tmp_path / "x"):
        pass
