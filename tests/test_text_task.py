"""The text task: scores and probe against plain computations, the head's own rate, and the front door with its bad inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from adapters.errors import BadInput
from analysis import judge_controls, load
from sweeps import lr_robustness
from tests.make_driver import Driven, drive_here
from tests.make_stage import TextStage
from tests.make_text import make_domains, make_encoder
from training.run import Run
from training.setting import Setting
from training.store import RunFolder
from training.task_kinds import parse_task
from training.tasks.order import alike
from training.tasks.probe_head import fit_ridge, predict_by_probe
from training.tasks.text_maker import MAKER
from training.tasks.text_task import score_rows


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> TextStage:
    """A tiny BERT and two domains."""
    return TextStage(tmp_path_factory.mktemp("text"))


def with_options(stage: TextStage, words: str) -> str:
    """The task's options in canonical form, with some changed."""
    return parse_task(f"text:sentences=40,tokens=16,{words}")[1]


def test_scores_are_those_of_the_confusion_matrix() -> None:
    labels, guesses = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 0])
    found = score_rows(7, "tweets", labels, guesses).set_index("metric")["value"]
    assert found["accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["matthews"] == pytest.approx(np.corrcoef(labels, guesses)[0, 1])
    constant = score_rows(7, "tweets", labels, torch.ones(6, dtype=torch.long)).set_index("metric")["value"]
    assert (constant["accuracy"], constant["matthews"]) == (0.5, 0.0)


def test_the_loss_is_the_cross_entropy_of_the_mean_over_the_tokens(stage: TextStage) -> None:
    cells = [stage.cell(seed=s, subject=u) for s, u in zip((0, 1), stage.units, strict=True)]
    task = stage.task(cells)
    expected = []
    for row, (cell, one) in enumerate(zip(cells, task.sets, strict=True)):
        ids = stage.encoder.tokens([s.text for s in one.train], 16)
        places = alike(cell.seed, "sentence", 4, tuple(map(len, ids)), cell.train_batch_size)
        weight, bias = (part[row] for part in task.head._split(task.head.values)["out_proj"])
        losses = []
        for place in places:
            hidden = stage.model(input_ids=torch.tensor([ids[place]])).last_hidden_state[0]
            logits = hidden.mean(dim=0) @ weight.T + bias
            losses.append(F.cross_entropy(logits, torch.tensor(one.train[place].label)))
        expected.append(torch.stack(losses).mean())
    torch.testing.assert_close(task.losses(5), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_a_pool_is_gone_through_once_before_anything_comes_again() -> None:
    lengths = tuple(int(n) for n in np.random.default_rng(0).integers(3, 40, 64))
    first = [alike(1, "sentence", i, lengths, 8) for i in range(8)]
    assert sorted(place for batch in first for place in batch) == list(range(64))
    again = [alike(1, "sentence", i, lengths, 8) for i in range(8, 16)]
    assert first != again
    spread = np.mean([np.ptp([lengths[p] for p in batch]) for batch in first])
    assert spread < 0.4 * np.ptp(lengths), "a batch is of sentences of about one length"
    odd = [alike(1, "sentence", i, lengths[:61], 8) for i in range(8)]
    assert {place for batch in odd for place in batch} == set(range(61))
    assert all(len(batch) == 8 for batch in odd)


def test_the_probe_is_the_minimum_of_the_ridge() -> None:
    """There the gradient of the sum is nothing; and it separates what a line separates, however the features are scaled."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    y = (x[:, 0] + 0.5 * x[:, 1] + 0.3 * torch.randn(200, generator=generator) > 0).long()
    weight, bias = (part.requires_grad_() for part in fit_ridge(x.double(), y, 2))
    total = F.cross_entropy(x.double() @ weight.T + bias, y, reduction="sum") + weight.square().sum() / (2 * 0.05)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(total, (weight, bias))) < 1e-3
    found = predict_by_probe(x, y, x, 2)
    assert (found == y).float().mean() > 0.9
    scale = torch.tensor([1e3, 1e-3, 1.0, 5.0, 1.0])
    assert torch.equal(predict_by_probe(x * scale, y, x * scale, 2), found)


def test_the_head_keeps_its_rate_unless_it_is_to_follow(stage: TextStage, tmp_path: Path) -> None:
    """Adam's first step is its rate, whatever the gradient: so the head's distance tells at which rate it trains."""
    moved = {}
    for head in ("fixed", "follows"):
        options = with_options(stage, f"head={head}")
        cells = [stage.cell(steps=1, lr=lr, task_options=options, adam_weight_decay=0.0) for lr in (1e-4, 1e-2)]
        folders = stage.train(tmp_path / head, cells)
        moved[head] = [float(folder.read_steps()["beside_distance"].iloc[0]) for folder in folders]
    assert moved["fixed"][0] == pytest.approx(moved["fixed"][1], rel=1e-3)
    assert moved["follows"][1] == pytest.approx(100 * moved["follows"][0], rel=1e-2)


def test_the_head_is_no_part_of_the_adapter(stage: TextStage, tmp_path: Path) -> None:
    (folder,) = stage.train(tmp_path, [stage.cell()])
    head = load_file(folder.adapter / "head.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {"classifier.weight": (2, 32), "classifier.bias": (2,)}
    assert not any("classifier" in name for name in load_file(folder.adapter / "adapter_model.safetensors"))
    rank, shapes = 4, [(32, 32)] * 8 + [(64, 32), (32, 64)] * 2
    assert folder.read()["num_parameters"] == sum(rank * sum(shape) for shape in shapes)


@pytest.mark.parametrize(("targets", "count"), [("all", 12), ("attention", 8), ("qv", 4)])
def test_only_the_named_matrices_are_adapted(targets: str, count: int, stage: TextStage, tmp_path: Path) -> None:
    cell = stage.cell(task_options=with_options(stage, f"targets={targets}"))
    (folder,) = stage.train(tmp_path, [cell])
    matrices = folder.read()["matrices"]
    assert len(matrices) == count
    assert {row["block"] for row in matrices} == {"layer.0", "layer.1"}


def test_it_learns_the_sentences_and_something_beyond_them(stage: TextStage, tmp_path: Path) -> None:
    options = parse_task("text:sentences=120,tokens=16,head_lr=0.01")[1]
    own = {"steps": 150, "train_batch_size": 16, "task_options": options}
    (good, idle), (base,) = (
        stage.train(tmp_path, cells)
        for cells in ([stage.cell("full", lr=lr, **own) for lr in (1e-3, 1e-8)], [stage.cell(**own).base()])
    )
    scores = [f.read_scores().groupby("metric", observed=True)["value"].mean() for f in (good, idle, base)]
    assert good.read_steps()["loss"].iloc[-5:].mean() < 0.1
    assert scores[0]["accuracy"] > scores[2]["accuracy"] > 0.55, (
        "the probe is above chance, and training above the probe"
    )
    assert scores[0]["drift"] > 100 * scores[1]["drift"]


def test_the_probe_is_controlled_by_shuffled_labels_and_the_larger_class(stage: TextStage, tmp_path: Path) -> None:
    """Its mean is the balanced accuracy that the base model's run has as its score; what says nothing scores a half."""
    cell = stage.cell(task_options=parse_task("text:sentences=120,tokens=16")[1]).base()
    (folder,) = stage.train(tmp_path, [cell])
    rows = folder.read_controls().astype({"kind": str, "picture": str})
    means = rows.groupby("kind")["value"].mean()
    scores = folder.read_scores().groupby("metric", observed=True)["value"].mean()
    assert means["probe"] == pytest.approx(scores["accuracy"], abs=1e-6)
    assert means["majority"] == pytest.approx(0.5, abs=1e-6)
    assert means["shuffled_labels"] == pytest.approx(0.5, abs=0.12)
    assert rows[rows["kind"] == "shuffled_labels"]["picture"].nunique() == 5
    assert rows.groupby("picture")["against"].nunique().eq(len(stage.task([cell]).sets[0].test)).all()


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # PEFT asks transformers so
@pytest.mark.parametrize(
    "method", ["lora", "dora", "delora:start=zero_b", "oft", "hra", "vera", "peft:lora", "peft:hira"]
)
def test_peft_reads_the_adapter_and_classifies_alike(method: str, stage: TextStage, tmp_path: Path) -> None:
    """The stored score, from transformers' model, PEFT's reading of the adapter folder, and the head beside it."""
    cell = stage.cell(method, lr=1e-2, steps=20)
    (folder,) = stage.train(tmp_path, [cell])
    one = stage.task([cell]).sets[0]
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(stage.folder / "encoder"), folder.adapter).eval()
    head = load_file(folder.adapter / "head.safetensors")
    with torch.no_grad():
        hidden = [
            model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
            for ids in stage.encoder.tokens([s.text for s in one.test], 16)
        ]
    logits = torch.stack(hidden) @ head["classifier.weight"].T + head["classifier.bias"]
    expected = score_rows(20, one.cls, torch.tensor([s.label for s in one.test]), logits.argmax(dim=1))
    found = folder.read_scores().set_index("metric")["value"]
    assert found["accuracy"] == pytest.approx(expected.set_index("metric")["value"]["accuracy"], abs=0.02)


def drive(runs: Path, folder: Path, *more: str) -> Driven:
    """The front door on a tiny encoder and a folder of domains."""
    words = [
        "lr_robustness.py", "--task", "text:sentences=40,tokens=16", "--model", str(folder / "encoder"),
        "--runs", str(runs), "--steps", "6", "--train-batch-size", "4", "--rank", "4", "--base-lr", "1e-3", "--norms-every", "3",
    ]  # fmt: skip
    return drive_here(lr_robustness, [*words, *more], runs)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and domains."""
    folder = tmp_path_factory.mktemp("place")
    make_encoder(folder / "encoder")
    make_domains(folder / "domains")
    return folder


GRID = ("--method", "lora", "etherplus", "--multipliers", "1", "8", "64")


def test_the_front_door_leaves_table_figure_and_page(place: Path, tmp_path: Path) -> None:
    done = drive(tmp_path, place, *GRID, "--subjects", f"{place / 'domains'}/", "3")
    assert done.code == 0, done.err
    folder = tmp_path / "lr_robustness-text"
    assert "on 3 training sets (books-1, books-2, games-1)" in done.out
    assert "balanced accuracy" in done.out
    assert "DINO" not in done.out
    assert " subject" not in done.out.replace("--subjects", "")
    page = (folder / "report.html").read_text()
    assert "Inside the encoder" in page
    assert "U-Net" not in page
    results = load(folder)
    assert results.kind.name == "text"
    assert len(results.runs) == 18
    judged = judge_controls(results)
    assert list(judged["subject"]) == ["books-1", "books-2", "games-1"]
    assert {"num_test_sentences", "probe", "shuffled_labels", "majority", "verdict"} <= set(judged.columns)
    assert "probes of shuffled labels" in page or "shuffled_labels" in page
    assert set(results.matrices["kind"]) == {"query", "key", "value", "out", "up", "down"}
    again = drive(tmp_path, place, *GRID, "--subjects", f"{place / 'domains'}/", "3")
    assert "18 done, 0 to train" in again.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--subjects", "{domains}/", "films-1"], "unknown training set 'films-1'"),
        (["--subjects", "{domains}/", "99"], "--subjects is 99"),
        (["--subjects", "nowhere/"], "nowhere"),
        (["--task", "text:head=loose"], "--task text: head is loose; allowed: fixed, follows"),
        (["--task", "text:tokens=2"], "--task text: tokens is 2"),
        (["--task", "text:sentences=100000", "--subjects", "{domains}/"], "100000"),
        (["--model", "{domains}", "--subjects", "{domains}/"], "has no config.json"),
        (["--num-images", "3", "--subjects", "{domains}/"], "--num-images is 3; allowed: only with --task pictures"),
        (["--rank", "33", "--subjects", "{domains}/"], "--rank is 33; the smallest matrix"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, place: Path, tmp_path: Path) -> None:
    done = drive(tmp_path, place, *(word.format(domains=place / "domains") for word in words))
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err


def test_pictures_and_text_do_not_share_a_sweep(place: Path, tmp_path: Path) -> None:
    subjects = ("--subjects", f"{place / 'domains'}/", "1")
    assert drive(tmp_path, place, *GRID, *subjects, "--sweep", "mixed").code == 0
    words = ["lr_robustness.py", "--sweep", "mixed", "--subjects", "1", "--runs", str(tmp_path), "--dry-run"]
    done = drive_here(lr_robustness, words, tmp_path)
    assert done.code == 2
    assert "belongs to model" in done.err


def test_sentences_that_changed_since_the_plan_are_refused(stage: TextStage) -> None:
    assert stage.encoder.pad_id >= 0
    folder = stage.folder / "encoder"
    setting = Setting(str(folder), "", "", str(stage.sentences), "", "", "runs")
    cell = dataclasses.replace(stage.cell(), subject_hash="0" * 16)

    with pytest.raises(BadInput, match="the sentences of books-1 changed since the sweep was planned"):
        MAKER.make(setting, [Run(cell, RunFolder("runs/one"), {})])
