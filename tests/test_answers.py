"""Instruction tuning: losses against transformers' own, packs, files, and the front door with its bad inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from adapters.errors import BadInput
from analysis import load
from sweeps import lr_robustness
from tests.make_decoder import make_decoder, make_decoder_tokenizer, make_prompts
from tests.make_driver import drive_here
from tests.make_text import make_encoder
from training.cell import Cell
from training.loop import train_pack
from training.run import Run
from training.store import RunFolder
from training.task_kinds import parse_task
from training.tasks import decoder as decoders
from training.tasks import prompts
from training.tasks.answer_task import AnswerTask
from training.tasks.decoder import FAMILY, pad_left
from training.tasks.training_sets import divide, left_out

OPTIONS = parse_task("answers:tokens=16,rows=40")[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return make_decoder(tmp_path_factory.mktemp("llama") / "decoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of prompts."""
    return make_prompts(tmp_path_factory.mktemp("prompts") / "mine")


def cell(**changes: object) -> Cell:
    """A short cell."""
    fields = {
        "method": "lora", "options": "alpha=2r,divisor=r,init=kaiming,lr_ratio=1", "rank": 4, "subject": "books-1", "seed": 0,
        "steps": 6, "lr": 1e-3, "task": "answers", "task_options": OPTIONS, "train_batch_size": 4, "norms_every": 3,
    }  # fmt: skip
    return Cell(**{**fields, **changes})


def make_task(model: Path, folder: Path, cells: list[Cell]) -> AnswerTask:
    """A pack."""
    sets = {one.subject: prompts.load(folder, one.subject, 40) for one in cells}
    return AnswerTask(decoders.load(FAMILY.locate(str(model)), CPU), cells, sets)


def train(model: Path, folder: Path, place: Path, cells: list[Cell]) -> list[RunFolder]:
    """Train a pack."""
    folders = [RunFolder(place / f"run-{one.identity()[:10]}") for one in cells]
    train_pack([Run(*pair, {}) for pair in zip(cells, folders, strict=True)], make_task(model, folder, cells))
    return folders


# Losses


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True), ("mistral", False), ("qwen3", True)])
def test_the_loss_is_transformers_own_of_the_answers_alone(kind: str, tied: bool, folder: Path, tmp_path: Path) -> None:
    """Row by row and not filled up, with the prompt's labels at -100, as instruction tuning has them."""
    made = make_decoder(tmp_path / kind, kind, tie_word_embeddings=tied)
    long = parse_task("answers:tokens=60,rows=40")[1]  # Qwen's tokenizer reads letters
    task = make_task(made, folder, [cell(task_options=long), cell(subject="games-1", seed=1, task_options=long)])
    model = AutoModelForCausalLM.from_pretrained(made).eval()
    expected = []
    for own, one in zip(task.cells, task.sets, strict=True):
        nats, count = 0.0, 0
        for row in task._rows(own, one, 3, 0):
            begin = task.decoder.tokenizer(row.text)["input_ids"]
            end = [*task.decoder.tokenizer(row.label, add_special_tokens=False)["input_ids"], 3]
            labels = torch.tensor([[-100] * len(begin) + end])
            with torch.no_grad():
                nats += float(model(input_ids=torch.tensor([begin + end]), labels=labels).loss) * len(end)
            count += len(end)
        expected.append(nats / count)
    assert task.losses(3).tolist() == pytest.approx(expected, rel=1e-4)


def test_what_fills_a_row_up_changes_nothing(llama: Path) -> None:
    decoder = decoders.load(FAMILY.locate(str(llama)), CPU)
    short, long = [2, 80, 81], [2, 80, 90, 91, 92, 93, 94]
    with torch.no_grad():
        alone = decoder.hidden(*pad_left([short]))[0]
        both = decoder.hidden(*pad_left([short, long]))[0, -3:]
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_long_rows_lose_the_beginning_of_their_prompt(llama: Path) -> None:
    decoder = decoders.load(FAMILY.locate(str(llama)), CPU)
    ids, number = decoder.exchange("the kabo is good", "bad kabo", 64)
    assert (len(ids), number, ids[-1]) == (8, 3, 3)
    assert decoder.exchange("the kabo is good", "bad kabo", 5)[0] == [ids[0], *ids[-4:]], "what begins a text stays"
    assert decoder.prompt("the kabo is good", 3) == [ids[0], *ids[3:5]]
    assert decoder.prompt("the kabo is good", 1) == ids[4:5], "a token of the prompt comes before what begins a text"
    cut, number = decoder.exchange("the kabo is good", "bad kabo the a is", 4)
    assert (len(cut), number) == (4, 3), "a token of the prompt stays, from which the answer begins"


def test_the_token_that_ends_texts_stands_where_it_was_written(llama: Path) -> None:
    decoder = decoders.load(FAMILY.locate(str(llama)), CPU)
    end = decoder.tokenizer.eos_token
    assert decoder.prompt(f"the kabo {end}") == [*decoder.prompt("the kabo"), decoder.end_id]
    assert decoder.exchange("the", f"bad {end}", 64) == decoder.exchange("the", "bad", 64)


def test_scores_are_over_all_tokens_of_the_held_out_answers(llama: Path, folder: Path) -> None:
    """Domains with unequal numbers of rows in one pack are scored as each is alone."""
    cells = [cell().base(), cell(subject="games-1").base()]
    both = make_task(llama, folder, cells)
    both.sets[1] = type(both.sets[1])(**{**vars(both.sets[1]), "test": both.sets[1].test[:7]})
    found = [one.scores.set_index("metric")["value"] for one in both.evaluate(0)]
    assert found[0]["drift"] == found[1]["drift"] == 0.0
    for scores, own in zip(found, both.sets, strict=True):
        alone = make_task(llama, folder, cells[:1])
        alone.sets = [own]
        expected = alone.evaluate(0)[0].scores.set_index("metric")["value"]
        assert scores["answer_loss"] == pytest.approx(expected["answer_loss"], rel=1e-5)
        assert scores["right_tokens"] == pytest.approx(expected["right_tokens"])


# Training


def test_it_learns_the_answers(llama: Path, folder: Path, tmp_path: Path) -> None:
    options = parse_task("answers:tokens=16,rows=60,targets=all")[1]
    own = {"steps": 120, "train_batch_size": 16, "task_options": options}
    cells = [cell(method="full", options="", rank=0, lr=lr, **own) for lr in (1e-2, 1e-9)]
    good, idle = train(llama, folder, tmp_path, cells)
    (base,) = train(llama, folder, tmp_path / "base", [cell(**own).base()])
    scores = [f.read_scores().groupby("metric", observed=True)["value"].mean() for f in (good, idle, base)]
    assert scores[0]["answer_loss"] < scores[2]["answer_loss"] - 0.3, scores
    assert scores[1]["answer_loss"] == pytest.approx(scores[2]["answer_loss"], rel=1e-3)
    assert scores[0]["right_tokens"] > scores[2]["right_tokens"] + 0.4, scores
    assert scores[0]["drift"] > 100 * scores[1]["drift"]


def test_a_pack_trains_as_its_runs_alone(llama: Path, folder: Path, tmp_path: Path) -> None:
    cells = [cell(lr=1e-3), cell(lr=1e-2, subject="games-1", seed=1)]
    packed = train(llama, folder, tmp_path / "packed", cells)
    for number, one in enumerate(cells):
        (alone,) = train(llama, folder, tmp_path / f"alone-{number}", [one])
        for name in ("loss", "grad_norm"):
            ours, theirs = packed[number].read_steps()[name], alone.read_steps()[name]
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=2e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_an_adapter_is_one_of_pefts(llama: Path, folder: Path, tmp_path: Path) -> None:
    """On transformers' model without its head it gives what was trained."""
    (run,) = train(llama, folder, tmp_path, [cell(lr=1e-2)])
    peft = PeftModel.from_pretrained(AutoModel.from_pretrained(llama), str(run.adapter)).eval()
    ids = torch.tensor([[2, 80, 90, 91]])
    with torch.no_grad():
        moved = peft(input_ids=ids).last_hidden_state
        still = AutoModel.from_pretrained(llama).eval()(input_ids=ids).last_hidden_state
    assert float((moved - still).abs().max()) > 1e-3
    head = AutoModelForCausalLM.from_pretrained(llama).lm_head
    task = make_task(llama, folder, [cell()])
    task.decoder.model, task.decoder.head = peft, head
    score = task.evaluate(6)[0].scores.set_index("metric")["value"]["answer_loss"]
    stored = run.read_scores().set_index("metric")["value"]["answer_loss"]
    assert score == pytest.approx(stored, rel=1e-4)


# Files and the front door


def test_rows_of_a_document_stay_together(folder: Path) -> None:
    parts = divide(prompts.read(folder))
    of = [{row.document for row in part if row.domain == "books"} for part in parts.values()]
    assert sum(map(len, of)) == len(set().union(*of))
    one = prompts.load(folder, "games-2", 40)
    assert (len(one.train), {row.domain for row in one.others}) == (40, {"books"})
    assert prompts.names(folder, "tuning") == ["books-t1", "games-t1", "books-t2", "games-t2", "books-t3", "games-t3"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", r"books.jsonl, line 301: no JSON"),
        ('{"prompt": "a"}', r"line 301: no 'answer'; expected one JSON object a line"),
        ('{"prompt": "a", "answer": " "}', r"line 301: answer is ' '; allowed: text that is not empty"),
        ('{"prompt": 3, "answer": "b"}', r"line 301: prompt is 3; allowed: text"),
        ("[1]", r"line 301: list; expected one JSON object a line"),
        ('{"prompt": "a", "answer": "b", "id": "0_0"}', r"line 301: id '0_0' stands there twice"),
        ('{"prompt": "a", "answer": "b", "id": [0]}', r"line 301: id \[0\]; allowed: text or a whole number"),
        ("[" * 100_000, r"line 301: no JSON; expected .*: lists or tables in each other, more than 100 deep"),
        (
            r'{"prompt": "a\ud800", "answer": "b"}',
            r"line 301: prompt has half of a character, '\\ud800'; write it whole",
        ),
        (r'{"prompt": "a", "answer": "b", "id": "\ud800"}', r"line 301: id has half of a character"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line(line: str, said: str, tmp_path: Path) -> None:
    made = make_prompts(tmp_path / "mine", ("books",))
    with (made / "books.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(BadInput, match=said):
        prompts.locate(str(made))


def test_what_is_left_out_of_a_folder_is_told(tmp_path: Path) -> None:
    made = make_prompts(tmp_path / "mine", ("books",))
    (made / "books.jsonl").rename(made / "books.JSONL")
    (made / "games.csv").write_text("prompt,answer\n")
    rows = len(prompts.read(made)["books"])
    assert left_out(made, prompts.ENDING) == [f"left out of {made}: games.csv; read are files <domain>.jsonl"]
    with (made / "books.JSONL").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "again", "answer": "b"}\n' * 2 + '{"prompt": "again", "answer": "c"}\n')
    assert (len(prompts.read(made)["books"]), prompts.count_repeated(made)) == (rows + 1, 1)
    (made / "books.jsonl").symlink_to(made / "nowhere")
    with pytest.raises(BadInput, match=r"books.jsonl cannot be read: No such file"):
        prompts.read(made)


def test_folders_that_cannot_be_used_are_one_line(llama: Path, folder: Path, tmp_path: Path) -> None:
    for name, said in (
        ("", "--subjects names no folder"),
        ("nowhere", "no folder 'nowhere'"),
        (str(tmp_path), "no prompts in"),
    ):
        with pytest.raises(BadInput, match=said):
            prompts.locate(name)
    with pytest.raises(BadInput, match=r"games-1: 4000 rows to learn from; allowed: 2 to \d+"):
        prompts.load(folder, "games-1", 4000)
    with pytest.raises(
        BadInput, match=r"decoder folder .* is a bert; allowed: the decoders llama, mistral, qwen2, qwen3"
    ):
        FAMILY.locate(str(make_encoder(tmp_path / "bert")))
    endless = make_decoder(tmp_path / "endless")
    make_decoder_tokenizer(endless, end=None)
    with pytest.raises(BadInput, match=r"has no token that ends a text \(eos_token\)"):
        decoders.load(FAMILY.locate(str(endless)), CPU)
    headless = tmp_path / "headless"
    AutoModel.from_pretrained(llama).save_pretrained(headless)
    make_decoder_tokenizer(headless)
    with pytest.raises(BadInput, match=r"have no lm_head.weight: they are not whole"):
        decoders.load(FAMILY.locate(str(headless)), CPU)


def test_the_front_door_draws_a_score_of_which_less_is_better(llama: Path, folder: Path, tmp_path: Path) -> None:
    words = [
        "driver", "--task", "answers:tokens=16,rows=40", "--method", "lora", "--model", str(llama), "--subjects", str(folder),
        "2", "--multipliers", "1", "4", "--steps", "4", "--rank", "2", "--norms-every", "4",
        "--runs", str(tmp_path),
    ]  # fmt: skip
    driven = drive_here(lr_robustness, words, tmp_path)
    assert driven.code == 0, driven.err
    results = load(tmp_path / "lr_robustness-answers")
    assert results.kind.headline.lower_is_better
    assert set(results.runs["subject"]) == {"books-1", "games-1"}
    matrices = json.loads((next((tmp_path / "lr_robustness-answers").glob("lora-*")) / "run.json").read_text())[
        "matrices"
    ]
    assert {row["block"] for row in matrices} == {"layer.0", "layer.1"}
    assert "loss of answers" in driven.out + (tmp_path / "lr_robustness-answers" / "report.html").read_text()
