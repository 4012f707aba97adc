"""What holds of every task in the packed loop: same results in a pack and alone, exact distances, resumption, divergence."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters import METHODS
from tests.compare_runs import assert_same, weights
from tests.make_stage import RATE, STAGES, Stage
from training.columns import SPECTRA
from training.loop import Interrupted
from training.store import RunFolder


@pytest.fixture(scope="module", params=STAGES)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Each task's tiny stage."""
    return STAGES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_whole_run(method: str, stage: Stage, tmp_path: Path) -> None:
    cells = [stage.cell(method), stage.cell(method, lr=2 * RATE.get(method, 1e-3))]
    for folder, cell in zip(stage.train(tmp_path, cells), cells, strict=True):
        run = folder.read()
        assert run["status"] == "finished"
        assert run["diverged_step"] is None
        assert run["num_parameters"] > 0
        assert run["provenance"]["pack_size"] == 2
        assert len(run["matrices"]) == stage.matrices
        assert all(row["block"] and row["kind"] for row in run["matrices"])
        dynamics, norms, steps = folder.read_dynamics(), folder.read_norms(), folder.read_steps()
        assert sorted(dynamics["step"].unique()) == list(range(cell.steps + 1))
        assert (dynamics.groupby("step")["matrix"].nunique() == stage.matrices).all()
        assert np.isfinite(dynamics["distance"]).all()
        assert (dynamics.loc[dynamics["step"] == 6, "distance"] > 0).all()
        assert sorted(norms["step"].unique()) == [0, 3, 6]
        assert len(steps) == cell.steps
        assert np.isfinite(steps["loss"]).all()
        assert set(folder.read_scores()["metric"]) == {metric.name for metric in stage.kind.metrics}
        assert len(folder.images()) == (2 if stage.kind.has_pictures else 0)
        assert all((folder.path / row["file"]).exists() for row in folder.images())
        assert not folder.checkpoints()
        assert weights(folder)


@pytest.mark.parametrize("method", ["lora", "dora", "delora", "etherplus", "vera", "dvora", "hra", "full"])
def test_stored_distance_is_that_of_the_stored_weights(
    method: str, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64 merge-and-subtract, from weights that are caught in the act at steps 0, 1, 2 and at the end."""
    from training.dynamics import Dynamics

    caught: list[tuple[int, dict[str, float]]] = []
    layers = {name: m for name, m in stage.model.named_modules() if isinstance(m, torch.nn.Linear)}
    originals = {name: layer.weight.double() for name, layer in layers.items()}
    record = Dynamics.record

    def catch(self: Dynamics, step: int) -> None:
        with torch.no_grad():
            exact = {
                path: float((double(adapter).weight()[0] - originals[path]).norm())
                for path, adapter in self.attached.adapters.items()
            }
        caught.append((step, exact))
        record(self, step)

    monkeypatch.setattr(Dynamics, "record", catch)
    folder = stage.train(tmp_path, [stage.cell(method)])[0]
    table = folder.read_dynamics().astype({"matrix": str}).set_index(["step", "matrix"])["distance"]
    for step, exact in caught:
        for path, value in exact.items():
            allowed = 1e-6 * value + 1e-7 * float(originals[path].norm())
            assert abs(table[step, path] - value) <= allowed, (step, path, table[step, path], value)


def double(adapter: torch.nn.Module) -> torch.nn.Module:
    """The same adapter around the same weights, in float64."""
    base = torch.nn.Linear(adapter.base.in_features, adapter.base.out_features, bias=adapter.base.bias is not None)
    base.load_state_dict(adapter.base.state_dict())
    twin = type(adapter)(
        base.double(), path=adapter.path, seeds=[0] * adapter.num_replicas, rank=adapter.rank,
        boundary=[1.0] * adapter.num_replicas, options=adapter.options,
    )  # fmt: skip
    with torch.no_grad():
        for name in (*adapter.ROLES, *adapter.frozen, *adapter.shared):
            getattr(twin, name).copy_(getattr(adapter, name))
    return twin


@pytest.mark.unchecked
@pytest.mark.parametrize("method", ["lora", "dora", "delora", "etherplus", "vera", "dvora", "hra", "full"])
def test_pack_and_alone_agree(method: str, stage: Stage, tmp_path: Path) -> None:
    first, second = stage.units
    cells = [
        stage.cell(method, seed=s, lr=m * RATE.get(method, 1e-3), subject=b)
        for s, m, b in ((0, 0.2, first), (1, 0.1, second), (0, 0.05, first))
    ]
    together = stage.train(tmp_path / "pack", cells)
    for cell, packed in zip(cells, together, strict=True):
        alone = stage.train(tmp_path / "alone", [cell])[0]
        for name, tensor in weights(packed).items():
            other = weights(alone)[name]
            # Adam's first step is the sign of a gradient, and on random weights a few gradients are nothing but rounding.
            assert (tensor - other).norm() <= 3e-4 * other.norm() + 1e-12, name


@pytest.mark.unchecked
def test_killed_pack_goes_on_bit_for_bit(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [stage.cell("delora", steps=12, eval_steps=(5,), lr=r) for r in (1e-2, 3e-2)]
    undisturbed = stage.train(tmp_path / "whole", cells, checkpoint_every_s=0.0)
    for fall in (1, 4, 5, 9, 12):
        with monkeypatch.context() as patch:
            fall_at(stage, fall, patch)
            with pytest.raises(RuntimeError, match="killed"):
                stage.train(tmp_path / f"fall-{fall}", cells, checkpoint_every_s=0.0)
        resumed = stage.train(tmp_path / f"fall-{fall}", cells, checkpoint_every_s=0.0)
        for left, right in zip(undisturbed, resumed, strict=True):
            assert_same(left, right)


def fall_at(stage: Stage, fall: int, patch: pytest.MonkeyPatch) -> None:
    """Let the task die at a step."""
    whole = stage.task_class.losses

    def losses(self: object, step: int, micro: int = 0) -> torch.Tensor:
        if step == fall:
            raise RuntimeError("killed")
        return whole(self, step, micro)  # type: ignore[arg-type]

    patch.setattr(stage.task_class, "losses", losses)


@pytest.mark.unchecked
def test_damaged_checkpoint_falls_back_to_the_one_before(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cells = [stage.cell("lora", steps=8)]
    undisturbed = stage.train(tmp_path / "whole", cells, checkpoint_every_s=0.0)[0]
    with monkeypatch.context() as patch:
        fall_at(stage, 7, patch)
        with pytest.raises(RuntimeError, match="killed"):
            stage.train(tmp_path / "cut", cells, checkpoint_every_s=0.0)
    folder = RunFolder(tmp_path / "cut" / undisturbed.run_id)
    assert folder.checkpoints() == [5, 6]
    damaged = folder.checkpoint(6)
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert_same(undisturbed, stage.train(tmp_path / "cut", cells, checkpoint_every_s=0.0)[0])
    assert "damaged checkpoint of step 6" in capsys.readouterr().err


@pytest.mark.unchecked
def test_divergence_is_a_result_and_leaves_neighbours_alone(stage: Stage, tmp_path: Path) -> None:
    cells = [stage.cell(steps=30), stage.cell(steps=30, lr=1e30), stage.cell(steps=30, lr=2e-3)]
    calm = [cells[0], stage.cell(steps=30, lr=1e-4), cells[2]]
    wild, tame = stage.train(tmp_path / "wild", cells), stage.train(tmp_path / "tame", calm)
    assert [folder.status() for folder in wild] == ["finished", "diverged", "finished"]
    run = wild[1].read()
    assert 1 <= run["diverged_step"] <= 30
    dynamics = wild[1].read_dynamics()
    assert np.isfinite(dynamics[["distance", "norm_a", "norm_b", "angle_a", "angle_b"]]).all().all()
    assert (dynamics.loc[dynamics["step"] == 30, "distance"] > 1e20).all()
    assert np.isfinite(wild[1].read_norms().drop(columns=["step", "matrix", *SPECTRA])).all().all()
    assert set(wild[1].read_scores()["metric"]) == {metric.name for metric in stage.kind.metrics}
    for left, right in ((wild[0], tame[0]), (wild[2], tame[2])):
        assert_same(left, right)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_every_snapshot_after_the_start_has_its_spectrum(method: str, stage: Stage, tmp_path: Path) -> None:
    folder = stage.train(tmp_path, [stage.cell(method)], spectra=True)[0]
    norms = folder.read_norms().set_index("step")
    assert len(list(folder.path.glob("norms/*.parquet"))) == 1, "the first part holds the start too"
    assert norms.loc[[3, 6], list(SPECTRA[:-1])].notna().all(axis=None)
    assert norms.loc[6, SPECTRA[-1]].notna().all()
    assert norms.loc[0, list(SPECTRA)].isna().all(axis=None), "rounding is no update"


def test_runs_of_one_seed_see_the_same_batches(stage: Stage) -> None:
    task = stage.task([stage.cell(seed=3), stage.cell(seed=3, lr=1.0), stage.cell(seed=4)])
    first = task.losses(1)
    assert first[0] == first[1]
    assert first[0] != first[2]
    torch.testing.assert_close(task.losses(1), first, rtol=0, atol=0)


def test_stop_signal_checkpoints_and_resumes(stage: Stage, tmp_path: Path) -> None:
    cells = [stage.cell("dora", steps=10)]
    undisturbed = stage.train(tmp_path / "whole", cells)[0]

    def stop(progress: object) -> None:
        if progress.step == 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        stage.train(tmp_path / "cut", cells, report=stop)
    folder = RunFolder(tmp_path / "cut" / undisturbed.run_id)
    assert folder.status() == "preempted"
    assert folder.checkpoints()
    assert_same(undisturbed, stage.train(tmp_path / "cut", cells)[0])


def test_the_base_model_is_scored_once_and_its_drift_is_nothing(stage: Stage, tmp_path: Path) -> None:
    (folder,) = stage.train(tmp_path, [stage.cell(lr=5e-2).base()])
    (moved,) = stage.train(tmp_path, [stage.cell(lr=5e-2)])
    base, after = (one.read_scores().groupby("metric", observed=True)["value"].mean() for one in (folder, moved))
    assert folder.status() == "finished"
    assert abs(base["drift"]) < 1e-6
    assert after["drift"] > 1e-5
