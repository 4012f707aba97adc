"""GLUE: its files, its split and scores, and the front door with its bad inputs, on a made copy and a tiny RoBERTa."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModelForSequenceClassification

from adapters.errors import BadInput
from analysis import load
from sweeps import lr_robustness
from tests.make_driver import drive_here
from tests.make_glue import make_glue
from tests.make_text import make_encoder
from training.cell import Cell
from training.loop import train_pack
from training.run import Run
from training.store import RunFolder
from training.task_kinds import parse_task
from training.tasks import encoder as encoders
from training.tasks import glue
from training.tasks.glue_task import MEASURES, GlueTask
from training.tasks.probe_head import predict_by_regression

OPTIONS = parse_task("glue:tokens=24")[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eight tasks, small."""
    return make_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa."""
    return make_encoder(tmp_path_factory.mktemp("roberta") / "encoder", "roberta", type_vocab_size=1)


def make_task(copy: Path, encoder: Path, *units: str, **changes: object) -> GlueTask:
    """A pack of LoRA, one replica a unit."""
    fields = {
        "method": "lora", "options": "alpha=2r,divisor=r,init=kaiming,lr_ratio=1", "rank": 4, "seed": 0, "steps": 6, "lr": 1e-3,
        "task": "glue", "task_options": OPTIONS, "train_batch_size": 4, "norms_every": 3,
    }  # fmt: skip
    cells = [Cell(**{**fields, "subject": unit, **changes}) for unit in units]
    sets = {unit: glue.load(copy, unit) for unit in units}
    return GlueTask(encoders.load(encoders.FAMILY.locate(str(encoder)), torch.device("cpu")), cells, sets)


def test_a_task_is_read_as_the_hub_lays_it_out(copy: Path) -> None:
    assert glue.names(copy) == list(glue.TABLES)
    cola, mnli, stsb = (glue.load(copy, name) for name in ("cola", "mnli", "stsb"))
    raw = pd.read_parquet(next((copy / "cola").glob("train-*")))
    assert [row.text for row in cola.train] == raw["sentence"].to_list()
    assert all(isinstance(row.text, tuple) and len(row.text) == 2 for row in mnli.train)
    assert {row.label for row in mnli.train} == {0, 1, 2}
    assert all(isinstance(row.label, float) for row in stsb.train)
    assert {row.domain for row in cola.others} == set(glue.TABLES) - {"cola"}


def test_the_validation_set_is_parted_once_and_for_all(copy: Path) -> None:
    """Half of a small one selects; of a large one a thousand rows do. No row is in both."""
    tests, tuning = (glue.load(copy, name) for name in ("rte", "rte-tuning"))
    assert (len(tuning.test), len(tests.test)) == (30, 30)
    assert not {row.id for row in tuning.test} & {row.id for row in tests.test}
    assert tuning.train == tests.train
    rows = [glue.GlueRow("qqp", str(n), "x", 0) for n in range(2001)]
    assert {name: len(part) for name, part in glue.divide(rows).items()} == {"tuning": 1000, "evidence": 1001}
    assert [len(part) for part in glue.divide(rows[:1043]).values()] == [522, 521], "as in App. B for CoLA"
    assert glue.divide(rows[::-1]) == glue.divide(rows), "the order of the file decides nothing"


def test_scores_are_scipys_and_scikits() -> None:
    draw = np.random.default_rng(0)
    numbers, told = draw.normal(size=50), draw.normal(size=50)
    expected = (stats.pearsonr(numbers, told)[0] + stats.spearmanr(numbers, told)[0]) / 2
    assert MEASURES["correlation"](torch.tensor(numbers), torch.tensor(told)) == pytest.approx(expected)
    labels, guesses = draw.integers(0, 2, 50), draw.integers(0, 2, 50)
    tp, tn = ((labels == c) & (guesses == c) for c in (1, 0))
    fp, fn = ((labels == c) & (guesses != c) for c in (0, 1))
    tp, tn, fp, fn = (float(part.sum()) for part in (tp, tn, fp, fn))
    matthews = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    pair = torch.tensor(labels), torch.tensor(guesses)
    assert MEASURES["matthews"](*pair) == pytest.approx(matthews)
    assert MEASURES["accuracy"](*pair) == pytest.approx(np.mean(labels == guesses))
    assert MEASURES["matthews"](pair[0], torch.ones(50)) == 0.0, "one class for all is no correlation"


def test_the_probe_of_numbers_is_least_squares_with_a_ridge() -> None:
    draw = torch.Generator().manual_seed(0)
    x, noise = torch.randn(80, 6, generator=draw), 0.1 * torch.randn(80, generator=draw)
    y = 2 * x[:, 0] - x[:, 3] + 3 + noise
    told = predict_by_regression(x, y, x)
    known = ((x - x.mean(dim=0)) / x.std(dim=0)).double().numpy()
    more = np.vstack([known, np.eye(6) / np.sqrt(2 * 0.05)])  # a row for each weight, whose square it adds
    weight = np.linalg.lstsq(more, np.concatenate([y.double() - y.double().mean(), np.zeros(6)]), rcond=None)[0]
    np.testing.assert_allclose(told, known @ weight + float(y.double().mean()), rtol=1e-5)
    assert MEASURES["correlation"](y, told) > 0.98


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pairs_are_read_as_transformers_reads_them(kind: str, copy: Path, tmp_path: Path) -> None:
    """BERT is told which half a token is of; RoBERTa is not."""
    folder = make_encoder(tmp_path / kind, kind, type_vocab_size=2 if kind == "bert" else 1)
    encoder = encoders.load(encoders.FAMILY.locate(str(folder)), torch.device("cpu"))
    pairs = [row.text for row in glue.load(copy, "mrpc").train[:3]]
    both = map(list, zip(*pairs, strict=True))
    inputs = encoder.tokenizer(*both, padding=True, return_tensors="pt", return_token_type_ids=True)
    inputs = {name: value for name, value in inputs.items() if kind == "bert" or name != "token_type_ids"}
    with torch.no_grad():
        expected = encoder.model(**inputs).last_hidden_state[:, 0]
        found = encoder.pooled(*encoders.pad(encoder.tokens(pairs, 60), encoder.pad_id), first=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert kind == "roberta" or int(inputs["token_type_ids"].sum()) > 0


def test_tasks_of_one_two_and_three_outputs_share_a_pack(copy: Path, roberta: Path) -> None:
    """Each replica's loss is its own task's, by a head of its own; what its head has too much never moves."""
    units = ("stsb", "cola", "mnli")
    task = make_task(copy, roberta, *units)
    assert task.head is not None
    parts = task.head._split(task.head.values)
    expected = []
    for row, (cell, one) in enumerate(zip(task.cells, task.sets, strict=True)):
        rows = task._rows(cell, one, 1, 0)
        features = task._features([r.text for r in rows])
        dense, out = ([part[row] for part in parts[name]] for name in ("dense", "out_proj"))
        given = torch.tanh(features @ dense[0].T + dense[1]) @ out[0].T + out[1]
        labels = torch.tensor([r.label for r in rows])
        classes = one.table.classes
        expected.append(
            F.mse_loss(given[:, 0], labels) if classes == 1 else F.cross_entropy(given[:, :classes], labels)
        )
    losses = task.losses(1)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-6)
    task.head.zero_grad()
    losses.sum().backward()
    task.head.step(torch.zeros(3, dtype=torch.bool), 1.0)
    weight = task.head._split(task.head.values)["out_proj"][0]
    assert [int(own.abs().sum(dim=1).count_nonzero()) for own in weight] == [1, 2, 3]


def test_a_head_is_one_that_transformers_reads(copy: Path, roberta: Path, tmp_path: Path) -> None:
    task = make_task(copy, roberta, "mnli", "cola")
    assert task.head is not None
    features = torch.randn(1, 5, 32)
    for replica, labels in enumerate((3, 2)):
        (folder := tmp_path / str(labels)).mkdir()
        task.head.save(folder, replica)
        model = AutoModelForSequenceClassification.from_pretrained(roberta, num_labels=labels).eval()
        model.load_state_dict(load_file(folder / "head.safetensors"), strict=False)
        ours = task.head.logits(features.expand(2, -1, -1))[replica, :, :labels]
        torch.testing.assert_close(ours, model.classifier(features[0][:, None]), rtol=1e-5, atol=1e-6)


def test_it_learns_each_task_and_something_beyond_its_rows(copy: Path, roberta: Path, tmp_path: Path) -> None:
    options = parse_task("glue:tokens=24,head_lr=0.01,targets=all")[1]
    units = ("cola", "stsb", "mnli")
    own = {"steps": 120, "train_batch_size": 16, "task_options": options}
    scores = {}
    for name, changes in (
        ("full", {"method": "full", "options": "", "rank": 0}),
        ("base", {"method": "base", "options": ""}),
    ):
        task = make_task(copy, roberta, *units, **own, **changes)
        cells = task.cells if name == "full" else [cell.base() for cell in task.cells]
        task = GlueTask(task.encoder, cells, {one.name: one for one in task.sets})
        folders = [RunFolder(tmp_path / name / cell.subject) for cell in cells]
        train_pack([Run(cell, folder, {}) for cell, folder in zip(cells, folders, strict=True)], task)
        scores[name] = [f.read_scores().query("metric == 'score'")["value"].iloc[0] for f in folders]
    assert min(scores["full"]) > 0.4, scores
    assert np.mean(scores["full"]) > np.mean(scores["base"]) - 0.1, scores


def test_the_front_door_takes_tasks_as_subjects(copy: Path, roberta: Path, tmp_path: Path) -> None:
    words = [
        "driver", "--task", "glue:tokens=24", "--method", "lora", "--model", str(roberta), "--subjects", str(copy), "cola",
        "stsb", "--multipliers", "1", "4", "--steps", "4", "--rank", "2", "--train-batch-size", "4", "--norms-every", "4",
        "--runs", str(tmp_path),
    ]  # fmt: skip
    driven = drive_here(lr_robustness, words, tmp_path)
    assert driven.code == 0, driven.err
    results = load(tmp_path / "lr_robustness-glue")
    assert set(results.runs["subject"]) == {"cola", "stsb"}
    assert results.kind.name == "glue"
    assert (tmp_path / "lr_robustness-glue" / "fig2_lr_robustness.png").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("colla", "unknown task of GLUE 'colla': did you mean cola"),
        ("wnli", "unknown task of GLUE 'wnli'"),
    ],
)
def test_an_unknown_task_is_one_line(name: str, said: str, copy: Path) -> None:
    with pytest.raises(BadInput, match=said):
        glue.load(copy, name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop(columns="sentence"), "has no column 'sentence'; it has label, idx"),
        (
            lambda frame: frame.assign(label=-1),
            "row 0: label -1; allowed: 0, 1 .-1 stands for a label that is kept secret",
        ),
        (lambda frame: frame.assign(label=1), "the rows to learn from: 20 rows, all with the label 1"),
        (lambda frame: frame.assign(sentence=None), "row 0: sentence is None; allowed: text"),
        (lambda frame: frame[:0], "the rows to learn from: there is none"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(change: object, said: str, tmp_path: Path) -> None:
    folder = make_glue(tmp_path, ["cola"], num=20, held=10)
    (path,) = (folder / "cola").glob("train-*")
    change(pd.read_parquet(path)).to_parquet(path)  # type: ignore[operator]
    with pytest.raises(BadInput, match=said):
        glue.load(folder, "cola")


def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no folder 'nowhere'; give one that holds nyu-mll/glue of the hub"):
        glue.locate("nowhere")
    with pytest.raises(BadInput, match="holds none of cola, sst2, mrpc"):
        glue.locate(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = make_glue(tmp_path / "one", ["cola"], num=20, held=10)
    (folder / "cola" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadInput, match=r"train-00000-of-00001.parquet cannot be read"):
        glue.load(folder, "cola")
    with pytest.raises(BadInput, match="21 rows to learn from; allowed: 0 for all, or 2 to 20"):
        glue.load(make_glue(tmp_path / "two", ["cola"], num=20, held=10), "cola", 21)
