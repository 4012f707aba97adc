"""A user's own cluster: which file wins, what is refused and on which line, and whose commands are run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters import BadInput
from slurm.submit import clusters
from slurm.submit.clusters import Cluster, choose_cluster

THREE_LINES = '[here]\npartition = "gpu"\ngpus = 1\naccount = "lab"\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any file, and a working folder in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "plateau").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def write(home: Path, text: str, place: str = "work") -> Path:
    path = home / place / ("plateau/clusters.toml" if place == "config" else "clusters.toml")
    path.write_text(text)
    path.chmod(0o644)
    return path


def refusal(name: str = "here", **flags: object) -> str:
    with pytest.raises(BadInput) as caught:
        choose_cluster(name, flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_documented_defaults_are_those_of_the_code() -> None:
    assert choose_cluster("slurm") == Cluster()
    assert choose_cluster("export") == Cluster("export")


def test_cluster_needs_three_lines(home: Path) -> None:
    write(home, THREE_LINES)
    assert choose_cluster("here") == Cluster("here", partition="gpu", gpus="1", account="lab")
    assert choose_cluster("here").device == "cuda"


def test_flags_win_over_files_and_the_nearer_file_over_the_other(home: Path) -> None:
    write(home, '[slurm]\nqos = "low"\ntime_min = 30\n' + THREE_LINES, "config")
    write(home, '[here]\npartition = "big"\nmem_gb = 16\n')
    found = choose_cluster("here", {"account": "other", "time_min": None, "gpus": "a100:2"})
    wanted = {"partition": "big", "account": "other", "qos": "low", "time_min": 30, "mem_gb": 16.0, "gpus": "a100:2"}
    assert found == Cluster("here", **wanted)
    assert (found.num_gpus, found.cpus(0)) == (2, 4)
    assert choose_cluster("slurm") == Cluster(qos="low", time_min=30)


def test_unknown_cluster_lists_the_known_ones(home: Path) -> None:
    write(home, THREE_LINES)
    assert "--cluster is hier; known: inline, local, slurm, export, here (sections of" in refusal("hier")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[here]\npartition = "gpu"\ngpus = \n', 3, "cannot be read as TOML"),
        ('[here]\nparttion = "gpu"\n', 2, "parttion is no setting of a cluster; settings: partition, account"),
        ('[a]\ngpus = 1\n\n[here]\n\ngpus = "many"\n', 6, "gpus is 'many'; allowed: a number, or a type"),
        ("[here]\ntime_min = -1\n", 2, "time_min is -1; allowed: a whole number from 0 on"),
        ("[here]\ncpus_per_task = 1.5\n", 2, "cpus_per_task is 1.5; allowed: a whole number"),
        ("[here]\nmem_gb = nan\n", 2, "mem_gb is nan; allowed: a number from 0 on"),
        ("[here]\npacks_per_task = 0\n", 2, "packs_per_task is 0; allowed: a whole number from 1 on"),
        ("[here]\naccount = true\n", 2, "account is True; allowed: a name without blanks"),
        ('[here]\naccount = "a\\nb"\n', 2, "account is 'a\\nb'; allowed: a name"),
        ('[here]\nsetup = "module load cuda"\n', 2, "allowed: a list of texts"),
        ('[here]\nsetup = ["a\\nb"]\n', 2, "allowed: one line each"),
        ('[here]\nexport = ["A=1"]\n', 2, "allowed: names of environment variables, without values"),
        (
            '[here]\nexport = ["All"]\n',
            2,
            "holds 'All'; allowed: names of environment variables, without values, not all",
        ),
        ('[here]\nmemory = "gpu"\n', 2, "memory is 'gpu'; allowed: task, cpu or none"),
        ("gpus = 1\n[here]\n", 1, "'gpus' stands in no section"),
        ('\n[local]\npartition = "gpu"\n', 2, "[local] is the name of an executor"),
    ],
)
def test_broken_file_is_refused_with_its_line(home: Path, text: str, line: int, words: str) -> None:
    write(home, text)
    message = refusal()
    assert f"line {line}" in message
    assert words in message


def test_unreadable_file_is_refused(home: Path) -> None:
    (home / "work" / "clusters.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal()


@pytest.mark.parametrize("value", ["a b", "a;b", "$(reboot)", "a\nb", "`x`", "'", "--wrap=id", "-1"])
def test_flags_that_could_be_more_than_a_value_are_refused(value: str) -> None:
    for flag in ("partition", "account", "qos", "constraint", "gpus"):
        assert f"--{flag} is {value!r}" in refusal("slurm", **{flag: value})


def test_setup_runs_only_from_the_users_own_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(home, '[here]\nsetup = ["module load cuda", "source env"]\n')
    assert choose_cluster("here").setup == ("module load cuda", "source env")
    path.chmod(0o664)
    assert refusal().endswith(f"line 2: setup of a file that others can write is not taken: chmod go-w {path}")
    path.chmod(0o644)
    for folder, mode in ((path.parent, 0o777), (path.parent, 0o775), (home, 0o777)):
        folder.chmod(mode)
        assert refusal().endswith(
            f"setup is not taken from a folder in which others can exchange the file: chmod go-w {folder}"
        )
        folder.chmod(0o1777)  # as /tmp: others cannot exchange it
        assert choose_cluster("here").setup
        folder.chmod(0o755)
    user = os.geteuid()
    monkeypatch.setattr(clusters.os, "geteuid", lambda: user + 1)
    assert f"line 2: setup of a file that belongs to user {user} is not taken" in refusal()
    for text in ('export = ["A"]', "sbatch = { comment = 'x' }", "[here.sbatch]\ncomment = 'x'"):
        write(home, f"[here]\n{text}\n")
        assert f"of a file that belongs to user {user} is not taken" in refusal()
    write(home, THREE_LINES)
    assert choose_cluster("here").partition == "gpu", "what is a mere value may be anybody's"


def test_anything_else_of_sbatch_is_a_table_of_its_own(home: Path) -> None:
    write(home, "[slurm.sbatch]\ncomment = 'all'\nnice = 10\n", "config")
    write(
        home, "[here]\ngpus = '1g.10gb:1'\n[here.sbatch]\nmail_user = 'me@x.org'\ncomment = 'a b'\nexclusive = true\n"
    )
    found = choose_cluster("here")
    assert dict(found.sbatch) == {"comment": "a b", "nice": "10", "mail-user": "me@x.org", "exclusive": ""}
    assert (found.gpus, found.num_gpus) == ("1g.10gb:1", 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wrap = 'id'", "line 1: sbatch sets wrap, as Plateau does"),
        ("mem_per_cpu = '1G'", "sets mem_per_cpu, which is memory here"),
        ("export = 'ALL'", "sets export, which is export here"),
        ("'comment=x --wrap' = 'id'", "long options of sbatch without dashes"),
        ("'-w' = 'n1'", "long options of sbatch without dashes"),
        ('comment = "a\'b"', 'comment is "a\'b"; allowed: one line without quotes'),
        ("comment = 'a\\b'", "allowed: one line without quotes"),
        ('comment = "a\\nb"', "allowed: one line without quotes"),
        ("comment = '--wrap=id'", "comment is '--wrap=id'"),
        ("comment = '$(id)'", "allowed: one line"),
        ("comment = false", "comment is False"),
        ("gres = 'gpu:1'", "gres of --cluster here asks for GPUs: say how many by gpus too"),
    ],
)
def test_options_that_are_not_to_be_passed_on_are_refused(home: Path, line: str, words: str) -> None:
    write(home, f"[here.sbatch]\n{line}\n")
    assert words in refusal()


def test_file_saved_with_a_byte_order_mark_is_read(home: Path) -> None:
    (home / "work" / "clusters.toml").write_bytes(b"\xef\xbb\xbf" + THREE_LINES.encode())
    assert choose_cluster("here").account == "lab"
