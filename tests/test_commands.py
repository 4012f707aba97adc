"""Every command of README and docs is typed as it stands there, from its entry point, where a user would type it.

What takes hours is replaced after parsing, planning and identities (`tests/stand_in.py`); what cannot be typed at all stands in
`EXCEPTIONS` with its reason, and is parsed or planned all the same.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.make_checkpoints import load_unet, make_moved, make_run
from tests.make_decoder import make_decoder, make_prompts
from tests.make_dreambench import make_dreambench
from tests.make_glue import make_glue
from tests.make_pipeline import make_pipeline, make_scorers
from tests.make_slurm import make_slurm
from tests.make_text import make_encoder
from tests.warm_program import run_warm

ROOT = Path(__file__).resolve().parents[1]
DRIVERS = {path.stem for path in (ROOT / "sweeps").glob("*.py") if "run_driver(" in path.read_text()} - {"options"}
PYTHON = ("python", ".venv/bin/python")
FRONT_DOOR = "sweeps/lr_robustness.py"
TABLES = {"base_lr", "best_of_grid"}  # drivers that draw nothing
ELSEWHERE = {"docs/real_runs.md": "typed in its order, with its hub and its cluster, in tests/test_real_runs.py"}
# (pattern of a command, how far it goes, why not to its end); "make" is asked what it would do, "words" needs more words.
EXCEPTIONS = (
    (r"make ", "make", "sets up an environment from the network, or takes minutes to hours; CI runs its parts"),
    (r"sudo ", "parse", "root; tests/test_local_cluster.py and the tests marked slurm do it"),
    (r"sbatch .*--wrap", "skip", "SLURM's own program"),
    (r"export SLURM_CONF", "skip", "the shell's own"),
    (r".*--results docs/results/lr_robustness", "plan", "trains for a quarter of an hour"),
    (r".* -m pip install", "skip", "fetches from the network"),
    (r".*--docs docs/results/", "plan", "hours: what made docs/results"),
    (r".* -m training\.tasks\.fetch_text", "skip", "fetches 84 MB"),
    (r".* -m analysis\.carry_over", "parse", "of results on text, which fetch that; tests/test_carry_over.py"),
    (r".*--task text", "skip", "of what that fetches; tests/test_text_task.py types it on a small encoder"),
    (r".*--preset (glue|instruct) .*--subjects", "plan", "days on a CPU; test_glue.py and test_answers.py train tiny ones"),
    (r".* -m benchmarks\S*", "parse", "hours, or a GPU"),
    (r".* -m tests\.take_out", "parse", "hours"),
    (r".* -m slurm\.status .*--wait", "parse", "waits for jobs of a real SLURM; tests/test_status_command.py"),
    (r"\S+ -m (figures|analysis\.(compact|picture_export)|sweeps\.report_to)$", "words", "named in a sentence, needs more words"),
    (r'.*"SELECT \.\.\."', "words", "the query is left to the user; tests/test_api.py runs whole ones"),
    (r".* adapters\.check NAME", "words", "any method's name; tests/test_check.py"),
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command as it stands in a document, and how far it is typed."""

    text: str
    document: str
    only: str = ""

    @property
    def words(self) -> list[str]:
        """What follows the interpreter."""
        words = shlex.split(self.text, comments=True)
        return words[next(n for n, word in enumerate(words) if word in PYTHON) + 1 :]

    @property
    def is_bare(self) -> bool:
        """Whether it is a driver without a flag."""
        return len(self.words) == 1


def read_commands(document: Path) -> Iterator[str]:
    """Commands of fenced blocks, a line each, and of spans in text and tables."""
    text = document.read_text(encoding="utf-8")
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
        for line in re.sub(r"\\\n\s*", "", block).splitlines() if kind in ("", "sh", "bash") else ():
            if line.split(" ")[0] in (*PYTHON, "make", "sudo", "sbatch", "export") and not line.startswith("make it"):
                yield line.strip()
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    yield from (span for span in spans if re.match(r"(python|\.venv/bin/python|make) ", span))


def list_commands() -> list[Command]:
    """Every command of the documents, each once, whichever of the two interpreters stands before it."""
    found: dict[str, Command] = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        document = str(path.relative_to(ROOT))
        for text in read_commands(path) if document not in ELSEWHERE else ():
            only = next((only for pattern, only, _ in EXCEPTIONS if re.match(pattern, text)), "")
            words = shlex.split(text.removeprefix(".venv/bin/"), comments=True)
            found.setdefault(" ".join(words), Command(text, document, only))
    return list(found.values())


COMMANDS = list_commands()
BARE = [
    Command(f"python sweeps/{name}.py", "README.md") for name in sorted(DRIVERS - {"judge"})
]  # which needs a method
TYPED = [c for c in COMMANDS if c.only in ("", "parse", "plan") and not c.is_bare]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone as it is typed in, whose results are its own, with a file or a folder for every placeholder."""
    home = tmp_path / "plateau"
    home.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("docs", "runs", "logs", ".git", ".venv") and not path.name.startswith(".pytest"):
            (home / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", home / "docs", ignore=shutil.ignore_patterns("*.png", "*.pdf"))
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the speed pretended here is no one else's
    monkeypatch.setenv("PLATEAU_SETTLE_S", "0.1")
    monkeypatch.chdir(home)
    return home


def fill_placeholders(home: Path, pocket: Path) -> None:
    """What the documents leave to the user: FILE, PATH, RUN, a method of one's own, weights from the hub, a cluster."""
    make_pipeline(home / "PATH_OR_HUB_ID")
    dino, clip = make_scorers(home)
    hub = {"models/dino": dino, "openai/clip-vit-large-patch14": clip,
           "stable-diffusion-v1-5/stable-diffusion-v1-5": home / "PATH_OR_HUB_ID",
           "FacebookAI/roberta-base": make_encoder(home / "encoder", "roberta", type_vocab_size=1)}  # fmt: skip
    for place, source in hub.items():
        (home / place).parent.mkdir()
        (home / place).symlink_to(source)
    make_dreambench(home / "PATH")
    make_glue(home / "GLUE_FOLDER")
    make_decoder(home / "DECODER")
    make_prompts(home / "PROMPTS", num=2000)
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "add_a_method.md").read_text(), re.S)
    for name in ("mymethod.py", "wave.py"):
        (home / name).write_text(example[1] if example else "")
    (home / "RUNS").symlink_to(home / "runs")
    run = make_run(home / "made", make_moved(load_unet(pocket / "pipeline"), "lora:alpha=16", 16), pocket / "pipeline")
    (home / "RUN").symlink_to(run.path)
    (home / "FILE").symlink_to(run.adapter)
    (home / "clusters.toml").write_text('[mycluster]\npartition = "gpu"\ngpus = 1\n')


def another(home: Path, number: int) -> Path:
    """The same folder without results: what was trained in one of them is no other command's."""
    place = home.with_name(f"plateau-{number}")
    place.mkdir()
    for path in home.iterdir():
        if path.name not in ("runs", "RUNS"):
            (place / path.name).symlink_to(path)
    return place


def type_bare(command: Command, home: Path) -> subprocess.CompletedProcess:
    """One driver from the interpreter on, with its figure; the others in forks that have loaded what is not ours."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "hooks"), "PYTHONIOENCODING": "ascii"}
    if command.words != [FRONT_DOOR]:
        return run_warm(command.words, home, env)
    words, env = [sys.executable, *command.words], env | {"PLATEAU_TEST_DRAWS": "1"}
    return subprocess.run(words, cwd=home, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize("command", BARE, ids=lambda command: Path(command.words[0]).stem)
def test_driver_typed_without_a_flag_plans_runs_and_shows_its_result(command: Command, folder: Path) -> None:
    rates = (ROOT / "sweeps" / "base_rates.toml").read_bytes()
    done = type_bare(command, folder)
    assert (ROOT / "sweeps" / "base_rates.toml").read_bytes() == rates, "only the user's own search writes there"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    name = Path(command.words[0]).stem
    assert re.search(r"^(series|method) .*\n.+", done.stdout, re.M), f"no table: {done.stdout}"
    assert name in TABLES or re.search(r"^figure: \S+\.png ", done.stdout, re.M), done.stdout


def test_other_commands_run_as_they_stand(
    folder: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slurm(tmp_path, monkeypatch)
    fill_placeholders(folder, pocket)
    asked = [
        {"words": c.words, "cwd": str(another(folder, n) if n and c.words[0].startswith("sweeps/") else folder),
         "out": str(tmp_path / f"{n}.txt"), "only": c.only}
        for n, c in enumerate(TYPED)
    ]  # fmt: skip
    (tmp_path / "commands.json").write_text(json.dumps(asked))
    words = [sys.executable, "-m", "tests.stand_in", str(tmp_path / "commands.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wrong = []
    for number, (command, code) in enumerate(zip(TYPED, json.loads(done.stdout), strict=True)):
        said = (tmp_path / f"{number}.txt").read_text()
        if code or "Traceback" in said:
            wrong.append(f"{command.document}: {command.text}\n{code}: {said[-1500:]}")
    assert not wrong, "\n\n".join(wrong)


def test_make_knows_its_targets() -> None:
    for command in (c for c in COMMANDS if c.only == "make"):
        words = shlex.split(command.text, comments=True)
        done = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)


def test_every_exception_is_still_needed() -> None:
    assert {only for _, only, _ in EXCEPTIONS} <= {"make", "parse", "plan", "skip", "words"}
    for pattern, _, reason in EXCEPTIONS:
        assert any(re.match(pattern, command.text) for command in COMMANDS), (
            f"no command is one of {pattern!r}: {reason}"
        )
    assert all((ROOT / document).exists() for document in ELSEWHERE)


def test_every_driver_that_draws_has_a_command() -> None:
    table = (ROOT / "docs" / "figures.md").read_text()
    named = set(re.findall(r"^\| .*`python sweeps/(\w+)\.py", table, re.M))
    assert DRIVERS - {"base_lr"} == named, "base_lr finds the base rates; every other driver draws or tabulates"
