"""The frozen encoder: which matrices it has, how it pools and cuts texts, and which folders are refused in one line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from adapters import BadInput
from tests.make_text import VOCABULARY, make_encoder, make_word_tokenizer, pad_all_texts
from training.tasks import encoder, fetch_text, hub
from training.tasks.encoder import FAMILY, Encoder, load, pad
from training.tasks.pretrained import count_cut

CPU = torch.device("cpu")
TEXTS = ["the kabo is good", "a very awful and so dull lofu !"]
COMMAND = "`make text` (python -m training.tasks.fetch_text) fetches it"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, whose tokenizer's file asks for padding as MiniLM's does."""
    made = make_encoder(tmp_path_factory.mktemp("bert"))
    pad_all_texts(made, 20)
    return made


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Encoder:
    """The tiny BERT, loaded."""
    return load(FAMILY.locate(str(folder)), CPU)


def refusal(call, *arguments: object) -> str:
    """The line with which something is refused."""
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, **changes: object) -> Path:
    """A folder with another configuration."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


# Matrices.


def test_all_matrices_are_six_of_each_layer_in_the_models_order(folder: Path, tiny: Encoder) -> None:
    shapes = FAMILY.target_shapes(folder)
    modules = dict(tiny.model.named_modules())
    assert {path: tuple(modules[path].weight.shape) for path in shapes} == shapes
    assert list(shapes) == [path for path, module in modules.items() if isinstance(module, torch.nn.Linear)]
    assert shapes["encoder.layer.1.intermediate.dense"] == (64, 32)
    assert shapes["encoder.layer.1.output.dense"] == (32, 64)


def test_fewer_matrices_are_chosen_by_kind(folder: Path) -> None:
    kinds = {
        which: [FAMILY.where(path)["kind"] for path in FAMILY.target_shapes(folder, which)] for which in encoder.TARGETS
    }
    assert kinds == {
        "all": ["query", "key", "value", "out", "up", "down"] * 2,
        "attention": ["query", "key", "value", "out"] * 2,
        "qv": ["query", "value"] * 2,
    }


def test_layers_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    shapes = FAMILY.target_shapes(make_encoder(tmp_path, num_hidden_layers=11), "qv")
    assert [FAMILY.where(path)["block"] for path in shapes][::2] == [f"layer.{number}" for number in range(11)]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_finetuned_models_folder_has_the_same_matrices(kind: str, tmp_path: Path) -> None:
    made = make_encoder(tmp_path, kind, head=True)
    names = safetensors.torch.load_file(made / "model.safetensors")
    assert f"{kind}.encoder.layer.0.attention.self.query.weight" in names
    loaded = load(FAMILY.locate(str(made)), CPU)
    modules = dict(loaded.model.named_modules())
    assert len(FAMILY.target_shapes(made)) == 12
    for path in FAMILY.target_shapes(made):
        assert modules[path].weight.equal(names[f"{kind}.{path}.weight"])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("encoder.layer.0.attention.self.key", {"block": "layer.0", "kind": "key", "attention": "self-attention"}),
        ("encoder.layer.3.attention.output.dense", {"block": "layer.3", "kind": "out", "attention": "self-attention"}),
        ("encoder.layer.11.intermediate.dense", {"block": "layer.11", "kind": "up", "attention": "MLP"}),
        ("encoder.layer.0.output.dense", {"block": "layer.0", "kind": "down", "attention": "MLP"}),
    ],
)
def test_where_a_matrix_stands(path: str, found: dict[str, str]) -> None:
    assert FAMILY.where(path) == found


def test_what_is_no_target_is_refused(folder: Path) -> None:
    assert refusal(FAMILY.where, "pooler.dense").startswith(
        "'pooler.dense' is no matrix of an encoder's layer; allowed in "
    )
    assert refusal(FAMILY.target_shapes, folder, "mlp") == "unknown targets 'mlp'; allowed: all, attention, qv"


# Tokens and pooling.


def test_texts_have_a_token_for_each_word_and_no_padding(tiny: Encoder) -> None:
    rows = tiny.tokens(TEXTS, 48)
    assert [len(row) for row in rows] == [6, 10]
    assert [VOCABULARY[token] for token in rows[0]] == ["[CLS]", "the", "kabo", "is", "good", "[SEP]"]


def test_long_texts_are_cut_and_counted(tiny: Encoder, folder: Path) -> None:
    assert [len(row) for row in tiny.tokens(TEXTS, 8)] == [6, 8]
    assert VOCABULARY[tiny.tokens(TEXTS, 8)[1][-1]] == "[SEP]"
    assert [count_cut(folder, TEXTS, limit) for limit in (5, 8, 10)] == [(2, 5), (1, 8), (0, 10)]
    assert [count_cut(folder, TEXTS, 6, ending=ending) for ending in (0, 1)] == [(1, 6), (2, 6)]


def test_no_text_is_longer_than_the_model(tiny: Encoder, folder: Path) -> None:
    assert tiny.max_tokens == 66
    (row,) = tiny.tokens(["good " * 200], 512)
    assert len(row) == 66
    assert count_cut(folder, ["good " * 200, "good " * 64], 512) == (1, 66)
    assert tiny.pooled(*pad([row], tiny.pad_id)).isfinite().all()


def test_a_limit_without_room_is_refused(tiny: Encoder) -> None:
    assert refusal(tiny.tokens, TEXTS, 2) == "texts cut after 2 tokens; allowed: 3 to 66"


def test_robertas_positions_begin_behind_its_padding(tmp_path: Path) -> None:
    roberta = load(FAMILY.locate(str(make_encoder(tmp_path, "roberta"))), CPU)
    assert (roberta.max_tokens, roberta.pad_id) == (64, 1)
    rows = roberta.tokens(["good " * 200, *TEXTS], 512)
    assert len(rows[0]) == 64
    alone = roberta.pooled(*pad(rows[1:2], roberta.pad_id))
    torch.testing.assert_close(roberta.pooled(*pad(rows, roberta.pad_id))[1:2], alone, rtol=1e-4, atol=1e-5)


def test_pad_fills_up_to_the_longest_row() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert [tuple(part.shape) for part in pad([], 0)] == [(0, 0), (0, 0)]


def test_pooling_is_the_mean_over_the_tokens_of_each_row(tiny: Encoder) -> None:
    assert_pools_by_hand(tiny, TEXTS)


def assert_pools_by_hand(found: Encoder, texts: list[str]) -> None:
    """Compare pooling of padded rows with the mean over each text's own outputs, one text at a time."""
    rows = found.tokens(texts, 48)
    pooled = found.pooled(*pad(rows, found.pad_id))
    assert pooled.dtype == torch.float32
    for row, one in zip(rows, pooled):
        hidden = found.model(input_ids=torch.tensor([row])).last_hidden_state
        by_hand = torch.stack([hidden[0, place] for place in range(len(row))]).sum(0) / len(row)
        torch.testing.assert_close(one, by_hand, rtol=1e-4, atol=1e-5)


def test_loaded_is_frozen_in_evaluation_mode_without_pooler(tiny: Encoder, folder: Path) -> None:
    assert not tiny.model.training
    assert not any(weight.requires_grad for weight in tiny.model.parameters())
    assert {weight.dtype for weight in tiny.model.parameters()} == {torch.float32}
    assert not any("pooler" in name for name, _ in tiny.model.named_modules())
    batch = pad(tiny.tokens(TEXTS, 48), tiny.pad_id)
    assert tiny.pooled(*batch).equal(load(folder, CPU).pooled(*batch)), "nothing is drawn"


def test_what_is_put_into_the_model_gets_gradients(tiny: Encoder) -> None:
    shift = torch.zeros(32, requires_grad=True)
    layer = dict(tiny.model.named_modules())["encoder.layer.0.attention.self.query"]
    handle = layer.register_forward_hook(lambda module, given, out: out + shift)
    try:
        tiny.pooled(*pad(tiny.tokens(TEXTS, 48), tiny.pad_id)).square().sum().backward()
    finally:
        handle.remove()
    assert shift.grad is not None
    assert shift.grad.norm() > 0


# What is refused.


def test_another_kind_of_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for number, (changes, said) in enumerate(
        [
            ({"model_type": "llama"}, "is a llama; allowed: the encoders bert, roberta"),
            ({"model_type": "distilbert"}, "is a distilbert; allowed: the encoders bert, roberta"),
            ({"is_decoder": True}, "is a bert set up as a decoder (is_decoder); allowed: the encoders bert, roberta"),
        ]
    ):
        made = change(make_encoder(tmp_path / str(number)), **changes)
        assert refusal(FAMILY.locate, str(made)) == f"encoder folder {made} {said}"


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert refusal(FAMILY.locate, str(tmp_path)) == (
        f"encoder folder {tmp_path} has no config.json; give a folder as transformers saves it"
    )
    made = make_encoder(tmp_path / "made")
    (made / "tokenizer.json").unlink()
    assert (
        refusal(FAMILY.locate, str(made))
        == f"encoder folder {made} has no tokenizer (tokenizer.json, vocab.txt, vocab.json)"
    )
    (made / "model.safetensors").rename(made / "pytorch_model.bin")
    assert refusal(FAMILY.locate, str(made)) == f"encoder folder {made} has no *.safetensors; only safetensors are read"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    made = make_encoder(tmp_path)
    (made / "tokenizer.json").write_text("{", encoding="utf-8")
    assert refusal(FAMILY.locate, str(made)).startswith(f"{made / 'tokenizer.json'} cannot be read: ")
    (made / "model.safetensors").write_bytes(b"no tensors")
    assert refusal(FAMILY.locate, str(made)).startswith(
        f"{made / 'model.safetensors'} is damaged or no safetensors file: "
    )
    (made / "config.json").write_text("[]", encoding="utf-8")
    assert refusal(FAMILY.locate, str(made)) == f"{made / 'config.json'} is damaged: it holds no JSON object"


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    made, more = make_encoder(tmp_path), [*VOCABULARY, "surplus", "words"]
    make_word_tokenizer(made, more)
    said = f"the tokenizer knows {len(more)} tokens, the model embeds {len(VOCABULARY)}; it is another model's"
    assert refusal(FAMILY.locate, str(made)) == f"encoder folder {made}: {said}"
    (made / "tokenizer.json").unlink()
    (made / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    assert FAMILY.locate(str(made)) == made
    (made / "vocab.txt").rename(made / "vocab.json")
    (made / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(more)}), encoding="utf-8")
    assert f"knows {len(more)} tokens" in refusal(FAMILY.locate, str(made))


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    made = make_encoder(tmp_path)
    weights = safetensors.torch.load_file(made / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    safetensors.torch.save_file(weights, made / "model.safetensors", {"format": "pt"})
    assert refusal(load, FAMILY.locate(str(made)), CPU) == (
        f"the weights in {made} have no encoder.layer.1.output.dense.weight: they are not whole, or another model's"
    )
    safetensors.torch.save_file({"wte.weight": torch.zeros(3, 2)}, made / "model.safetensors", {"format": "pt"})
    said = f"the weights in {made} have no embeddings.word_embeddings; allowed: the encoders bert, roberta"
    assert refusal(FAMILY.locate, str(made)) == said


def test_unknown_names_say_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nothing", "./org/name"):
        said = f"no encoder folder {name!r}; give 'minilm', a folder, or a hub id ORG/NAME or ORG/NAME@REVISION"
        assert refusal(FAMILY.locate, name) == said
    assert refusal(FAMILY.locate, "org/absent@v1").startswith(
        "model 'org/absent@v1' is no folder, and not whole in the hub's cache"
    )


def test_hub_ids_are_fetched_without_what_nobody_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin", ".pt", ".onnx")) for pattern in patterns), "only safetensors"
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    assert FAMILY.locate("org/name") == FAMILY.locate("org/name@v2") == folder
    assert asked == [("org/name", None), ("org/name", "v2")]


# The package.


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds the tiny BERT and must not be imported; its weights are the pinned ones."""
    home = tmp_path / "package_of_tiny_bert"
    made = make_encoder(home / "data" / "bert")
    (home / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fetch_text, "ENCODER_FOLDERS", {"not_there": "x", home.name: "data/bert"})
    weights = (made / "model.safetensors").read_bytes()
    monkeypatch.setattr(fetch_text, "WEIGHTS_SHA256", hashlib.sha256(weights).hexdigest())
    return made


def test_package_is_found_and_not_imported(package: Path) -> None:
    assert FAMILY.locate("minilm") == package


def test_package_with_other_weights_is_refused(package: Path) -> None:
    wanted = fetch_text.WEIGHTS_SHA256
    make_encoder(package, seed=1)
    found = hashlib.sha256((package / "model.safetensors").read_bytes()).hexdigest()
    assert refusal(FAMILY.locate, "minilm") == (
        f"{package / 'model.safetensors'} is another file than it should be: its SHA-256 is {found}, not {wanted}; "
        f"remove its package, then {COMMAND}"
    )


def test_absent_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_text, "ENCODER_FOLDERS", {"not_there": "x"})
    assert refusal(FAMILY.locate, "minilm") == f"the encoder 'minilm' is in no package that is installed; {COMMAND}"


# The real MiniLM.


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The encoder that `make text` has installed."""
    if not any(importlib.util.find_spec(name) for name in fetch_text.ENCODER_FOLDERS):
        pytest.skip(f"no package with MiniLM is installed; {COMMAND}")
    return FAMILY.locate("minilm")


def test_minilm_has_36_matrices(minilm: Path) -> None:
    assert {which: len(FAMILY.target_shapes(minilm, which)) for which in encoder.TARGETS} == {
        "all": 36,
        "attention": 24,
        "qv": 12,
    }
    assert sum(8 * sum(shape) for shape in FAMILY.target_shapes(minilm).values()) == 331_776, (
        "LoRA's parameters at rank 8"
    )


def test_minilm_pools_as_by_hand(minilm: Path) -> None:
    found = load(minilm, CPU)
    assert found.max_tokens == 512
    assert len(found.tokens(["It was a great film!"], 48)[0]) == 8
    assert_pools_by_hand(found, ["It was a great film!", "Not worth the time, let alone the money.", "Fine."])
    texts = ["I love this film.", "A film that I love.", "The train leaves at noon."]
    one, alike, other = found.pooled(*pad(found.tokens(texts, 48), found.pad_id))
    assert torch.cosine_similarity(one, alike, dim=0) > 0.3 + torch.cosine_similarity(one, other, dim=0)
