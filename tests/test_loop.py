"""The packed loop on a tiny pipeline: same results in a pack and alone, exact distances, resumption, divergence."""

from __future__ import annotations

import dataclasses
import unittest.mock
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

from adapters import METHODS, get_class, parse_method
from tests.compare_runs import assert_same, weights
from tests.make_checkpoints import load_unet
from tests.make_pipeline import make_pipeline, make_scorers, make_subjects
from training.cell import Cell
from training.columns import SPECTRA
from training.loop import Interrupted, train_pack
from training.run import Run
from training.seeds import seed_of
from training.store import RunFolder
from training.tasks import pipeline as pipelines
from training.tasks import subjects as subject_folders
from training.tasks.sampling import sample, start_noise
from training.tasks.scorers import Scorers
from training.tasks.subject import SubjectTask

RATE = {"lora": 1e-3, "dora": 1e-3, "delora": 1e-2, "etherplus": 1e-2}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pipeline, its scorers and subjects."""
    folder = tmp_path_factory.mktemp("studio")
    make_pipeline(folder / "pipeline")
    make_scorers(folder)
    make_subjects(folder / "subjects")
    return folder


@pytest.fixture(scope="module")
def parts(studio: Path) -> tuple[pipelines.Pipeline, Scorers]:
    """The loaded pipeline and scorers."""
    device = torch.device("cpu")
    return (
        pipelines.load(studio / "pipeline", device),
        Scorers(str(studio / "dino"), str(studio / "clip"), device),
    )


def make_cell(method: str = "lora", **changes: object) -> Cell:
    """A short cell on the tiny pipeline."""
    spec = parse_method(method)
    fields: dict = {
        "method": spec.name, "options": spec.canonical, "rank": 4, "subject": "cup", "seed": 0, "steps": 6,
        "lr": RATE.get(spec.name, 1e-3), "boundary": 1.0 if get_class(spec.name).uses_boundary else None,
        "resolution": 16, "num_prompts": 2, "num_images": 1, "num_inference_steps": 2, "norms_every": 3, "guidance_scale": 2.0,
    }  # fmt: skip
    return Cell(**(fields | changes))


def make_task(studio: Path, parts: tuple, cells: list[Cell], **options: bool) -> SubjectTask:
    """The task of a pack."""
    subjects = {
        cell.subject: subject_folders.load(
            studio / "subjects", cell.subject, token="sks", instance_prompt="a {token} {cls}"
        )
        for cell in cells
    }
    return SubjectTask(parts[0], parts[1], cells, subjects, **options)


def train(studio: Path, parts: tuple, folder: Path, cells: list[Cell], **options: object) -> list[RunFolder]:
    """Train a pack and return its folders."""
    runs = [Run(cell, RunFolder(folder / f"run-{cell.identity()[:10]}"), {"multiplier": 1.0}) for cell in cells]
    train_pack(runs, make_task(studio, parts, cells), **options)
    return [run.folder for run in runs]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_whole_run(method: str, studio: Path, parts: tuple, tmp_path: Path) -> None:
    cells = [make_cell(method), make_cell(method, lr=2 * RATE.get(method, 1e-3))]
    for folder, cell in zip(train(studio, parts, tmp_path, cells), cells, strict=True):
        run = folder.read()
        assert run["status"] == "finished"
        assert run["diverged_step"] is None
        assert run["num_parameters"] > 0
        assert run["provenance"]["pack_size"] == 2
        assert len(run["matrices"]) == 32
        dynamics, norms, steps = folder.read_dynamics(), folder.read_norms(), folder.read_steps()
        assert sorted(dynamics["step"].unique()) == list(range(cell.steps + 1))
        assert (dynamics.groupby("step")["matrix"].nunique() == 32).all()
        assert np.isfinite(dynamics["distance"]).all()
        assert (dynamics.loc[dynamics["step"] == 6, "distance"] > 0).all()
        assert sorted(norms["step"].unique()) == [0, 3, 6]
        assert len(steps) == cell.steps
        assert np.isfinite(steps["loss"]).all()
        assert set(folder.read_scores()["metric"]) == {"dino", "clip_i", "clip_t"}
        assert len(folder.images()) == 2
        assert all((folder.path / row["file"]).exists() for row in folder.images())
        assert not folder.checkpoints()
        assert weights(folder)


def test_caches_change_nothing_but_the_time(studio: Path, parts: tuple) -> None:
    """The caches of latents and texts, as options: without them every step encodes anew, to the same losses."""
    cells = [make_cell(), make_cell(seed=1)]
    cached = make_task(studio, parts, cells)
    plain = make_task(studio, parts, cells, cache_latents=False, cache_texts=False)
    seen: list[int] = []
    encode = parts[0].encode_pictures
    with (
        unittest.mock.patch.object(
            type(parts[0]), "encode_pictures", lambda self, pictures: seen.append(len(pictures)) or encode(pictures)
        ),
        torch.no_grad(),
    ):
        for step in (1, 2, 3):
            torch.testing.assert_close(plain.losses(step), cached.losses(step), rtol=1e-5, atol=1e-6)
    assert len(seen) >= 6, "without the cache each replica encodes its pictures at each step"


@pytest.mark.parametrize("method", ["lora", "dora", "delora", "etherplus", "vera", "dvora", "hra", "full"])
def test_stored_distance_is_that_of_the_stored_weights(method: str, studio: Path, parts: tuple, tmp_path: Path) -> None:
    """Float64 merge-and-subtract, from weights that are caught in the act at steps 0, 1, 2 and at the end."""
    from adapters.pack import Attached

    caught: list[tuple[int, dict[str, float]]] = []
    originals = {name: m.weight.double() for name, m in parts[0].unet.named_modules() if isinstance(m, torch.nn.Linear)}

    def catch(self: object, step: int) -> None:
        attached: Attached = self.attached  # type: ignore[attr-defined]
        with torch.no_grad():
            exact = {}
            for path, adapter in attached.adapters.items():
                twin = double(adapter)
                exact[path] = float((twin.weight()[0] - originals[path]).norm())
        caught.append((step, exact))
        record(self, step)

    from training.dynamics import Dynamics

    record = Dynamics.record
    try:
        Dynamics.record = catch  # type: ignore[method-assign, assignment]
        folder = train(studio, parts, tmp_path, [make_cell(method)])[0]
    finally:
        Dynamics.record = record  # type: ignore[method-assign]
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
def test_pack_and_alone_agree(method: str, studio: Path, parts: tuple, tmp_path: Path) -> None:
    cells = [
        make_cell(method, seed=s, lr=m * RATE.get(method, 1e-3), subject=b)
        for s, m, b in ((0, 0.2, "cup"), (1, 0.1, "cup2"), (0, 0.05, "cup"))
    ]
    together = train(studio, parts, tmp_path / "pack", cells)
    for cell, packed in zip(cells, together, strict=True):
        alone = train(studio, parts, tmp_path / "alone", [cell])[0]
        for name, tensor in weights(packed).items():
            other = weights(alone)[name]
            # Adam's first step is the sign of a gradient, and on random weights a few gradients are nothing but rounding.
            assert (tensor - other).norm() <= 3e-4 * other.norm() + 1e-12, name


def test_lora_plus_trains_b_at_its_own_rate(studio: Path, parts: tuple, tmp_path: Path) -> None:
    """At the first step Adam moves B by its rate, whatever the gradient; A's gradient is zero, so only decay moves it."""
    plain, plus = (
        weights(train(studio, parts, tmp_path / name, [make_cell(name, steps=1)])[0])
        for name in ("lora", "lora:lr_ratio=4")
    )
    assert plain.keys() == plus.keys()
    for name, tensor in plain.items():
        factor = 4 if "lora_B" in name else 1
        assert tensor.norm() > 0
        torch.testing.assert_close(plus[name], factor * tensor, rtol=1e-5, atol=0)


@pytest.mark.unchecked
def test_killed_pack_goes_on_bit_for_bit(
    studio: Path, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [make_cell("delora", steps=12, eval_steps=(5,), lr=r) for r in (1e-2, 3e-2)]
    undisturbed = train(studio, parts, tmp_path / "whole", cells, checkpoint_every_s=0.0)
    for fall in (1, 4, 5, 9, 12):

        class Killed(Exception):
            pass

        task = SubjectTask.losses

        def losses(self: SubjectTask, step: int, micro: int = 0, fall: int = fall, task=task) -> torch.Tensor:
            if step == fall:
                raise Killed
            return task(self, step, micro)

        with monkeypatch.context() as patch:
            patch.setattr(SubjectTask, "losses", losses)
            with pytest.raises(Killed):
                train(studio, parts, tmp_path / f"fall-{fall}", cells, checkpoint_every_s=0.0)
        resumed = train(studio, parts, tmp_path / f"fall-{fall}", cells, checkpoint_every_s=0.0)
        for left, right in zip(undisturbed, resumed, strict=True):
            assert_same(left, right)


@pytest.mark.unchecked
def test_damaged_checkpoint_falls_back_to_the_one_before(
    studio: Path, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cells = [make_cell("lora", steps=8)]
    undisturbed = train(studio, parts, tmp_path / "whole", cells, checkpoint_every_s=0.0)[0]
    task = SubjectTask.losses

    def losses(self: SubjectTask, step: int, micro: int = 0) -> torch.Tensor:
        if step == 7:
            raise RuntimeError("killed")
        return task(self, step, micro)

    with monkeypatch.context() as patch:
        patch.setattr(SubjectTask, "losses", losses)
        with pytest.raises(RuntimeError, match="killed"):
            train(studio, parts, tmp_path / "cut", cells, checkpoint_every_s=0.0)
    folder = RunFolder(tmp_path / "cut" / undisturbed.run_id)
    assert folder.checkpoints() == [5, 6]
    damaged = folder.checkpoint(6)
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert_same(undisturbed, train(studio, parts, tmp_path / "cut", cells, checkpoint_every_s=0.0)[0])
    assert "damaged checkpoint of step 6" in capsys.readouterr().err


@pytest.mark.unchecked
def test_divergence_is_a_result_and_leaves_neighbours_alone(studio: Path, parts: tuple, tmp_path: Path) -> None:
    cells = [make_cell("lora", steps=30), make_cell("lora", steps=30, lr=1e30), make_cell("lora", steps=30, lr=2e-3)]
    calm = [cells[0], make_cell("lora", steps=30, lr=1e-4), cells[2]]
    wild, tame = train(studio, parts, tmp_path / "wild", cells), train(studio, parts, tmp_path / "tame", calm)
    assert [folder.status() for folder in wild] == ["finished", "diverged", "finished"]
    run = wild[1].read()
    assert 1 <= run["diverged_step"] <= 30
    dynamics = wild[1].read_dynamics()
    assert np.isfinite(dynamics[["distance", "norm_a", "norm_b", "angle_a", "angle_b"]]).all().all()
    assert (dynamics.loc[dynamics["step"] == 30, "distance"] > 1e20).all()
    assert np.isfinite(wild[1].read_norms().drop(columns=["step", "matrix", *SPECTRA])).all().all()
    assert set(wild[1].read_scores()["metric"]) == {"dino", "clip_i", "clip_t"}
    for left, right in ((wild[0], tame[0]), (wild[2], tame[2])):
        assert_same(left, right)


def test_runs_of_one_seed_see_the_same_noise_and_pictures(studio: Path, parts: tuple) -> None:
    task = make_task(studio, parts, [make_cell(seed=3), make_cell(seed=3, lr=1.0), make_cell(seed=4)])
    first = task.losses(1)
    assert first[0] == first[1]
    assert first[0] != first[2]
    torch.testing.assert_close(task.losses(1), first, rtol=0, atol=0)


def test_micro_batches_and_prior_loss_are_means_within_a_replica(studio: Path, parts: tuple, tmp_path: Path) -> None:
    cell = make_cell(train_batch_size=2, prior_loss_weight=0.5, num_class_images=3)
    plain = dataclasses.replace(cell, prior_loss_weight=0.0)
    from training.tasks.class_pictures import class_latents

    task = make_task(studio, parts, [cell, dataclasses.replace(cell, seed=1)])
    task.class_latents = {"cup": class_latents(parts[0], "cup", cell, tmp_path)}
    alone = make_task(studio, parts, [cell])
    alone.class_latents = task.class_latents
    torch.testing.assert_close(task.losses(1)[:1], alone.losses(1), rtol=1e-5, atol=1e-6)
    assert task.losses(1)[0] > make_task(studio, parts, [plain]).losses(1)[0]
    again = class_latents(parts[0], "cup", cell, tmp_path)
    assert torch.equal(again, task.class_latents["cup"]), "class pictures are not kept"


def test_stop_signal_checkpoints_and_resumes(studio: Path, parts: tuple, tmp_path: Path) -> None:
    import os
    import signal

    cells = [make_cell("dora", steps=10)]
    undisturbed = train(studio, parts, tmp_path / "whole", cells)[0]

    def stop(progress: object) -> None:
        if progress.step == 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(studio, parts, tmp_path / "cut", cells, report=stop)
    folder = RunFolder(tmp_path / "cut" / undisturbed.run_id)
    assert folder.status() == "preempted"
    assert folder.checkpoints()
    assert_same(undisturbed, train(studio, parts, tmp_path / "cut", cells)[0])


def test_drift_is_how_far_pictures_of_other_things_have_moved(studio: Path, parts: tuple, tmp_path: Path) -> None:
    """Against pictures that the merged U-Net and the untouched one draw by themselves; the other scores stay as they are."""
    plain = [make_cell("lora", lr=rate, eval_steps=(0,)) for rate in (5e-2, 5e-3)]
    cells = [dataclasses.replace(cell, num_drift_prompts=3) for cell in plain]
    assert "num_drift_prompts" not in plain[0].to_dict(), "runs made before keep their names"
    folders = train(studio, parts, tmp_path / "drift", cells)
    without = train(studio, parts, tmp_path / "plain", plain)
    untouched = draw_unrelated(*parts, cells[0])
    for folder, other, cell in zip(folders, without, cells, strict=True):
        scores = folder.read_scores()
        pd.testing.assert_frame_equal(
            scores[scores["metric"] != "drift"].reset_index(drop=True).astype({"metric": str, "prompt": str}),
            other.read_scores().astype({"metric": str, "prompt": str}),
        )
        drift = scores[scores["metric"] == "drift"]
        assert list(drift["step"]) == [0, 0, 0, 6, 6, 6]
        assert list(drift["prompt"].astype(str)) == list(subject_folders.UNRELATED[:3]) * 2
        assert drift["value"][:3].abs().max() < 1e-6, "LoRA starts at the base"
        adapted = PeftModel.from_pretrained(load_unet(studio / "pipeline"), folder.adapter)
        moved = draw_unrelated(dataclasses.replace(parts[0], unet=adapted), parts[1], cell)
        expected = (1 - (moved * untouched).sum(dim=1)) / 2
        np.testing.assert_allclose(drift["value"][3:], expected, rtol=1e-3, atol=1e-6)
    assert folders[0].read_scores()["value"].iloc[-1] > 1e-4
    base = make_cell("lora", num_drift_prompts=3).base()
    (folder,) = train(studio, parts, tmp_path / "base", [base])
    scores = folder.read_scores()
    assert scores[scores["metric"] == "drift"]["value"].abs().max() < 1e-6


@torch.no_grad()
def draw_unrelated(pipeline: pipelines.Pipeline, scorers: Scorers, cell: Cell) -> torch.Tensor:
    """Normalised DINO features of the pictures that a U-Net draws for the unrelated prompts."""
    prompts = subject_folders.UNRELATED[: cell.num_drift_prompts]
    noise = start_noise(pipeline, [seed_of("drift", prompt) for prompt in prompts], cell.resolution)
    text = pipeline.encode_text(list(prompts))[None]
    latents = sample(pipeline, text, noise, steps=cell.num_inference_steps, guidance=cell.guidance_scale)[0]
    pictures = (pipeline.decode_latents(latents) * 255).round() / 255
    return scorers.dino_features(pictures)
