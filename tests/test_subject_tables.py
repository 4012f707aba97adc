"""Tables that strangers have: read, or one line that says where and what; prompts that an encoder cuts are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters import BadInput
from tests.make_pictures import make_scene
from tests.make_pipeline import make_tokenizer
from training.tasks.prompt_length import Cut, find_cut
from training.tasks.subject_tables import read_prompts, read_table
from training.tasks.subjects import load

HEAD = "subject,class,kind,split\n"
ROW = "mug,coffee mug,object,evidence\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """One subject."""
    (tmp_path / "mug").mkdir()
    make_scene().save(tmp_path / "mug" / "a.png")
    return tmp_path


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "Excel"])
def test_a_table_is_read(mark: str, own: Path) -> None:
    (own / "subjects.csv").write_text(f"{mark}{HEAD}{ROW}\n,,,\n", encoding="utf-8")
    assert read_table(own) == {"mug": {"subject": "mug", "class": "coffee mug", "kind": "object", "split": "evidence"}}


TABLES = {
    "semicolons": (HEAD.replace(",", ";").encode(), "no column 'subject'; columns are subject, class, kind, split; cells"),
    "tabs": (HEAD.replace(",", "\t").encode(), "separated by tabs there, not by commas"),
    "column": (b"subject,class,kind\nmug,mug,object\n", "no column 'split'; columns are subject, class, kind, split"),
    "empty": (b"", "no column 'subject'"),
    "twice": (HEAD.replace("\n", ",class\n").encode(), "column 'class' stands there twice"),
    "subjects": ((HEAD + ROW + ROW).encode(), "line 3: subject 'mug' stands there twice"),
    "nobody": ((HEAD + ROW[3:]).encode(), "line 2: no subject"),
    "split": ((HEAD + ROW.replace("evidence", "train")).encode(), "line 2: mug has split 'train'; splits are tuning, evi"),
    "short": ((HEAD + "mug,mug\n").encode(), "line 2: mug has split ''"),
    "long": ((HEAD + ROW.replace("\n", ",more\n")).encode(), "line 2: 5 cells under 4 columns"),
    "line": ((HEAD + '"mug","coffee\nmug",object,test\n').encode(), "class is 'coffee\\nmug'; expected a name in one line"),
    "quote": ((HEAD + '"mug,mug,object,test\n').encode(), "line 2: unexpected end of data"),
    "order": ((HEAD.replace("\n", ",order\n") + ROW.replace("\n", ",first\n")).encode(), "order of mug is 'first'; allowed"),
    "UTF-16": ((HEAD + ROW).encode("utf-16"), "is UTF-16; save it as UTF-8 with commas"),
    "Latin-1": ((HEAD + ROW.replace("coffee", "caf\xe9")).encode("latin-1"), "line 2: not UTF-8; save it as such"),
    "NUL": ((HEAD + ROW.replace("coffee", "\0")).encode(), "line 2: a NUL byte; it is no text"),
    "huge": ((HEAD + "m" * 200_000 + ROW).encode(), "line 2: field larger than field limit"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_cannot_be_used_says_where(kind: str, own: Path) -> None:
    content, said = TABLES[kind]
    (own / "subjects.csv").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        load_own(own)
    assert str(own / "subjects.csv") in str(refused.value)
    assert said in str(refused.value)


def load_own(folder: Path) -> tuple[str, ...]:
    return load(folder, "mug", token="sks", instance_prompt="a {token} {cls}").prompts


PROMPTS = {
    "field": ('{"object": ["a {token} {class_token}"]}', "prompt 1 of 'object' has the field {class_token}; allowed: {token}, {"),
    "place": ('{"object": ["a {}"]}', "has the field {}"),
    "part": ('{"object": ["a {token.real}"]}', "has the field {token.real}"),
    "form": ('{"object": ["fine", "a {token!r:>9}"]}', "prompt 2 of 'object' has the field {token!r:>9}"),
    "brace": ('{"object": ["a {token"]}', "braces that are no field (expected '}' before end of string); {{ and }}"),
    "unrelated": ('{"unrelated": ["a {cls}"]}', "prompt 1 of 'unrelated' has the field {cls}; allowed: none"),
    "list": ('["a {token}"]', "it is ['a {token}'], not an object"),
    "text": ('{"object": "a {token}"}', "object is 'a {token}', not a list"),
    "number": ('{"object": ["a {token}", 3]}', "object[1] is 3, not a prompt"),
    "blank": ('{"object": ["  "]}', "object[0] is '  ', not a prompt"),
    "half a letter": ('{"object": ["\\ud800"]}', "not a prompt"),
    "nested": ('{"object": [["a {token}"]]}', "object[0] is ['a {token}'], not a prompt"),
    "none": ('{"object": []}', "'object' has no prompts; leave it out"),
    "null": ('{"object": null}', "'object' has no prompts; leave it out"),
    "kind": ('{"live": ["a {token}"]}', "has no prompts of kind 'object', which mug is; kinds there: live"),
    "no JSON": ('{"object": ["a"],}', "damaged file"),
    "deep": ("[" * 100_000, "in each other"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_that_cannot_be_used_say_which(kind: str, own: Path) -> None:
    content, said = PROMPTS[kind]
    (own / "prompts.json").write_text(content)
    with pytest.raises(BadInput) as refused:
        load_own(own)
    assert str(own / "prompts.json") in str(refused.value)
    assert said in str(refused.value)


def test_prompts_of_latin_1_and_utf_16(own: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        (own / "prompts.json").write_text('{"object": ["a caf\xe9"]}', encoding=encoding)
        with pytest.raises(BadInput, match=r"damaged file .*prompts.json: 'utf-8' codec"):
            load_own(own)


def test_good_prompts_are_read(own: Path) -> None:
    (own / "prompts.json").write_text(json.dumps({"object": ["a {token} {cls}", "{{x}} {cls}"]}), encoding="utf-8-sig")
    assert load_own(own) == ("a sks mug", "{x} mug")
    (own / "prompts.json").write_text('{"unrelated": ["a tree"]}')
    assert load_own(own)[0] == "a sks mug in the jungle", "the kinds that the file leaves out have prompts of their own"
    (own / "prompts.json").unlink()
    assert read_prompts(own).keys() == {"live", "object"}


@pytest.mark.parametrize("fast", [False, True])
def test_prompts_that_are_cut_are_found(fast: bool, tmp_path: Path, pocket: Path) -> None:
    if fast:
        folder, places = pocket / "pipeline" / "tokenizer", 24
    else:
        make_tokenizer(tmp_path / "tokenizer")
        folder, places = tmp_path / "tokenizer", 16
    short, long = "a dog on the beach", " ".join(["a red dog"] * 9)
    assert find_cut(folder, [short, short * 2]) is None
    alike, other = (f"{long} in the snow", f"{long} on the beach"), "blue " * 30
    assert find_cut(folder, [short, *alike, other]) == Cut(places, (*alike, other), (alike,))
