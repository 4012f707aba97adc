"""The pocket's recipe: a stopped stage goes on to the same weights, and what is held out stays out."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tools.pocket.linear_code import LinearCode, psnr_db
from tools.pocket.muon import orthogonalise
from tools.pocket.pictures import HELD_OUT_VENDOR, TRAIN_VENDORS, PictureSet, read_classes, read_groups
from tools.pocket.runs import STATES, StageRun, checkpoint_path, read_counters, seeded
from tools.pocket.split import FIRST_EDITION, SPLIT_CSV, draw_split


def make_model() -> nn.Module:
    """Two convolutions in the memory format of the pocket's, for AdamW and for Muon, and a frozen one."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 3, 3)
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    model[3].requires_grad_(False)
    return model


def train(folder: Path, num_steps: int = 8, stop_before: int | None = None) -> dict[str, torch.Tensor]:
    """Train in ``folder`` until the end, or break off in the middle of a step; returns weights and averages."""
    model = make_model()
    run = StageRun(folder, model, num_steps=num_steps, lr=1e-2, muon=True)
    for step in run.steps(save_every_s=0.0):
        if step == stop_before:
            raise InterruptedError
        run.update(model(torch.randn(2, 3, 8, 8, generator=seeded(0, step))).square().mean())
    return model.state_dict() | {f"ema.{name}": value for name, value in run.ema.items()}


def test_a_run_goes_on_to_the_same_weights_when_broken_off(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    for stop in (3, 6):
        with pytest.raises(InterruptedError):
            train(tmp_path / "broken", stop_before=stop)
    assert not list((tmp_path / "broken").glob("*.partial"))
    torch.testing.assert_close(train(tmp_path / "broken"), whole, rtol=0, atol=0)


def test_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    first = train(tmp_path)
    torch.testing.assert_close(train(tmp_path), first, rtol=0, atol=0)


def test_muon_moves_by_the_nearest_orthogonal_matrix() -> None:
    for shape in ((12, 40), (40, 12)):
        matrix = torch.randn(shape, generator=seeded(0, 1))
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        found = u.T @ orthogonalise(matrix) @ v.T
        assert (found.diagonal() - 1).abs().max() < 0.35
        assert (found - found.diagonal().diag()).abs().max() < 1e-4
        assert s.max() / s.min() > 2


def test_a_checkpoint_is_safetensors_and_says_where_it_stands(tmp_path: Path) -> None:
    train(tmp_path)
    path = checkpoint_path(tmp_path)
    assert {name.split(".")[0] for name in load_file(path)} == {"model", "ema", *STATES}
    assert read_counters(path).items() >= {"step": 8, "num_steps": 8}.items()


def test_a_begun_run_keeps_its_number_of_steps(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match="begun for 8 steps, not 9"):
        train(tmp_path, num_steps=9)


def test_the_split_is_that_of_its_seed() -> None:
    with SPLIT_CSV.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["class"]: row["split"] for row in rows} == draw_split()
    assert {row["class"]: row["kind"] for row in rows} == dict(read_classes().values())
    assert Counter(row["split"] for row in rows) == {"tuning": 12, "evidence": 40, "last_look": 13}
    assert not set(FIRST_EDITION) & {row["class"] for row in rows if row["split"] == "last_look"}


def test_subjects_are_ordered_by_what_is_to_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.pocket import subjects

    monkeypatch.setattr(subjects, "BASE_DINO_CSV", tmp_path / "base_dino.csv")
    plain = subjects.order_splits()
    assert {split: len(names) for split, names in plain.items()} == {"tuning": 12, "evidence": 40, "test": 13}
    groups, last = read_groups(), sorted(plain["evidence"])[-1]
    likeness = {name: -0.5 if name == last else 0.5 for name, _ in read_classes().values()}
    (tmp_path / "base_dino.csv").write_text("class,base_dino\n" + "".join(f"{n},{v}\n" for n, v in likeness.items()))
    ordered = subjects.order_splits()["evidence"]
    assert ordered[0] == last
    assert len({groups[name] for name in ordered[:6]}) == 6
    subjects.write_table(tmp_path / "subjects.csv")
    with (tmp_path / "subjects.csv").open() as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert (rows[last]["order"], rows[last]["base_dino"], rows[last]["split"]) == ("1", "-0.500", "evidence")


def make_pictures(codes: list[str], num_classes: int, names: list[str] | None = None) -> PictureSet:
    """White squares of all three vendors: ``codes`` and the companions' pictures, the first ``num_classes`` of them classes."""
    codes = [*codes, "2764", "2b50", "1f535"]
    vendors = np.repeat(np.array([*TRAIN_VENDORS, HELD_OUT_VENDOR]), len(codes))
    pixels = np.full((len(vendors), 64, 64, 4), 255, np.uint8)
    named = np.array([*(names or codes[:-3]), *codes[-3:]])
    return PictureSet(
        pixels, np.tile(named, 3), vendors, np.tile(codes, 3), np.tile(np.arange(len(codes)) < num_classes, 3)
    )


def test_pictures_kept_aside_train_no_autoencoder() -> None:
    from tools.pocket.vae import kept_aside, split_pictures

    pictures = make_pictures([f"{i:x}" for i in range(100)], num_classes=3)
    studio, aside = split_pictures(pictures)
    num_aside = int(kept_aside(pictures).sum()) // 3
    assert 0 < num_aside < 10
    assert len(studio.rgba) == 2 * (103 - num_aside)
    assert len(aside) == 2 * 2 * num_aside
    assert set(studio.pictures.vendors) == set(TRAIN_VENDORS)
    assert not kept_aside(studio.pictures).any()


def test_reports_on_the_autoencoder_leave_the_last_look_alone() -> None:
    from tools.pocket.vae_quality import photographs_of

    classes = read_classes()
    pictures = make_pictures(list(classes), len(classes), [name for name, _ in classes.values()])
    split = draw_split()
    assert {split[name] for name in photographs_of(pictures)} == {"tuning", "evidence"}
    assert set(photographs_of(pictures, TRAIN_VENDORS[0])) == set(split)


def test_the_edge_map_is_white_but_for_the_edges_lost() -> None:
    from tools.pocket.vae_quality import edge_error

    real = torch.zeros(1, 3, 16, 16)
    real[..., 8] = 1.0
    assert (edge_error(real, real) == 1).all()
    lost = edge_error(torch.zeros_like(real), real)
    assert (lost[..., 7:9] == -1).all()
    assert (lost[..., :7] == 1).all()
    assert (lost[..., 9:] == 1).all()


def test_the_text_tower_is_trained_and_the_vision_tower_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    from tools.pocket import clip as stage
    from tools.pocket.studio import open_studio

    monkeypatch.setattr(stage, "CHECK_EVERY", 2)
    names = ["cat", "dog", "boat", "key"]
    studio = open_studio(make_pictures(["1", "2", "3", "4"], 4, names))
    stage.train_clip(studio, tmp_path, num_steps=2, batch_size=8)
    folder = tmp_path / "clip" / "model"
    trained, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    fresh = stage.make_clip(tokenizer)
    moved = {
        name.split(".")[0]
        for (name, one), two in zip(trained.state_dict().items(), fresh.state_dict().values(), strict=True)
        if not torch.equal(one, two)
    }
    assert moved == {"text_model", "text_projection", "logit_scale"}
    assert "noun_top1" in (tmp_path / "clip" / "log.jsonl").read_text()


def test_the_linear_code_is_the_principal_components() -> None:
    patches = torch.randn(50, 1, 192, generator=seeded(0, 0)) * torch.linspace(0.01, 0.4, 192)
    images = patches.view(50, 3, 8, 8).clamp(-1, 1)
    made = LinearCode.fit(images, 24).round_trip(images)
    flat = images.flatten(1)
    u, s, v = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    torch.testing.assert_close(made.flatten(1), (u[:, :24] * s[:24] @ v[:24] + flat.mean(0)).clamp(-1, 1))
    assert psnr_db(images, images + 0.2) == pytest.approx(torch.full((50,), 20.0))


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    """Rows as embeddings, of length 1."""
    return nn.functional.normalize(torch.tensor(rows), dim=-1)


def loss_of_likeness(views: torch.Tensor, distractors: torch.Tensor, thing: list[int], progress: float = 1.0) -> float:
    """The loss of embeddings: two views of each picture, and distractors of which the first was made of the first view."""
    from tools.pocket.likeness import Likeness, LikenessBatch

    empty = torch.zeros(len(views), 3, 64, 64), torch.zeros(len(distractors), 3, 64, 64)
    batch = LikenessBatch(*empty, torch.tensor(thing), torch.tensor([0]))
    return float(Likeness.__new__(Likeness).loss(torch.cat([views, distractors]), batch, progress))


def test_the_loss_of_likeness_is_least_where_all_score_as_they_should() -> None:
    one, two, nothing = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), unit((0.0, 0.0, 1.0))
    right = loss_of_likeness(unit(one, two, one, two), nothing, [0, 1])
    assert right < loss_of_likeness(unit(one, two, two, one), nothing, [0, 1]), "views of one picture are apart"
    assert right < loss_of_likeness(unit(one, (1.0, 1.0, 0.0)).repeat(2, 1), nothing, [0, 1]), "things are alike"
    for sign in (-1, 1):
        assert right < loss_of_likeness(unit(one, two, one, two), unit((0.0, 0.5 * sign, 1.0)), [0, 1]), "noise scores"


def test_what_scores_wrongly_costs_little_early_in_the_training_and_a_right_order_never_much() -> None:
    one, two, noise = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), unit((0.0, 0.5, 1.0))
    early, middle, late = (loss_of_likeness(unit(one, two, one, two), noise, [0, 1], p) for p in (0.0, 0.675, 1.0))
    assert early < middle < late
    assert late == pytest.approx(10 * early, rel=1e-3)


def test_the_same_thing_by_another_vendor_scores_between_its_own_and_other_things() -> None:
    def loss_at(cosine: float) -> float:
        drawn = (1.0, 0.0, 0.0, 0.0), (cosine, (1 - cosine**2) ** 0.5, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)
        return loss_of_likeness(unit(*drawn).repeat(2, 1), unit((0.0, 0.0, 0.0, 1.0)), [0, 0, 1])

    assert loss_at(0.15) == pytest.approx(loss_at(0.25), abs=1e-6)
    assert loss_at(0.2) < min(loss_at(0.0), loss_at(0.7))


def test_a_thing_has_the_same_colours_in_all_its_views() -> None:
    from tools.pocket.likeness import recolour

    thing = torch.arange(60).repeat(3)
    views = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(len(thing), 3, 64, 64)
    found = recolour(views, thing, torch.Generator().manual_seed(0))[..., 0, 0]
    assert torch.equal(found[:60], found[60:120])
    assert torch.equal(found[:60], found[120:])
    kinds = Counter(tuple(round(value, 1) for value in row) for row in found[:60].tolist())
    assert len(kinds) == 6
    assert kinds[0.1, 0.2, 0.3] > 25


def test_shuffled_views_have_the_same_squares_elsewhere() -> None:
    from tools.pocket.likeness import shuffle

    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = shuffle(images, 4, torch.Generator().manual_seed(1))

    def squares(image: torch.Tensor) -> list[bytes]:
        return [part.numpy().tobytes() for row in image.split(16, 1) for part in row.split(16, 2)]

    for before, after in zip(images, found, strict=True):
        assert squares(before) != squares(after)
        assert sorted(squares(before)) == sorted(squares(after))


def test_a_batch_of_likeness_has_both_vendors_views_and_every_kind_of_distractor() -> None:
    from tools.pocket.likeness import NUM_NOISES, Decoded, Likeness
    from tools.pocket.studio import Studio

    pictures = make_pictures([f"{i:x}" for i in range(20)], num_classes=3).of(*TRAIN_VENDORS)
    studio = Studio(pictures, pictures)
    decoded = Decoded(torch.zeros(len(pictures.codes), 3, 64, 64), torch.ones(NUM_NOISES, 3, 64, 64))
    batch = Likeness(studio, decoded).draw(16, seed=0, step=3)
    again = Likeness(studio, decoded).draw(16, seed=0, step=3)
    assert batch.views.shape == (32, 3, 64, 64)
    assert Counter(batch.thing.tolist()) == dict.fromkeys(batch.thing.tolist(), 2)
    assert len(batch.thing.unique()) == 8
    assert batch.distractors.shape == (12, 3, 64, 64)
    assert (batch.distractors[8:10] == 1).all(), "decoded noise"
    colours = batch.distractors[4:6]
    assert (colours == colours[..., :1, :1]).all(), "flat"
    torch.testing.assert_close(colours.mean((2, 3)), batch.views[batch.origin[4:]].mean((2, 3)))
    assert batch.views.abs().max() <= 1
    torch.testing.assert_close(batch.views, again.views, rtol=0, atol=0)


def test_controls_of_scorers_in_the_making_pass_for_a_perfect_one_and_fail_for_a_blind_one() -> None:
    from analysis.control_verdicts import judge_controls
    from tools.pocket.scorer_controls import ScorerBench
    from tools.pocket.vae import make_vae

    classes = read_classes()
    pictures = make_pictures(list(classes), len(classes), [name for name, _ in classes.values()])
    pictures.pixels[..., :3] = np.random.default_rng(0).integers(256, size=(len(pictures.codes), 1, 1, 3))
    names = list(draw_split())[:3]
    bench = ScorerBench(pictures, make_vae(), names)
    axes = torch.eye(len(names) + 1)
    known = {}
    for axis, name in zip(axes, names, strict=False):
        seen = bench.pictures_of(name)
        alike = dict.fromkeys(("real", "vae", "blurred"), axis) | {"same_class": 0.6 * axis + 0.8 * axes[-1]}
        for kind in sorted(set(seen) - {"other"}):
            known |= {picture.numpy().tobytes(): alike.get(kind, axes[-1]) for picture in seen[kind]}
    perfect = judge_controls(
        bench.measure("dino", lambda images: torch.stack([known[i.numpy().tobytes()] for i in images]))
    )
    assert list(perfect["subject"]) == names
    assert set(perfect["verdict"]) == {"passes"}, perfect["why"]
    blind = judge_controls(bench.measure("dino", lambda images: torch.ones(len(images), 1)))
    assert set(blind["verdict"]) == {"fails"}
