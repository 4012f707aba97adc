"""An account on a cluster in which docs/real_runs.md is typed line by line: a SLURM of scripts, a hub of files, tiny models."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slurm.estimate import calibrate
from slurm.store.layout import SweepFolder
from slurm.worker.run import run_pack
from tests.make_dreambench import make_dreambench
from tests.make_hub import serve_hub
from tests.make_pipeline import make_pipeline, make_scorers
from tests.make_slurm import FakeSlurm, make_slurm
from training.demand import Cost

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "real_runs.md").read_text()
# What a driver's command gets besides, so that the tiny model is trained for a moment.
SMALL = (
    "--method", "lora", "--subjects", "dreambooth/dataset", "2", "--seeds", "0", "--multipliers", "1", "2", "--steps", "2",
    "--num-prompts", "1", "--num-images", "1", "--num-drift-prompts", "1", "--num-inference-steps", "1",
    "--num-class-images", "1", "--resolution", "16", "--rank", "2", "--mixed-precision", "no", "--gpus", "0",
)  # fmt: skip
FIG2 = re.search(r'export FIG2="(.*?)"', PAGE, re.S)[1].replace("\\\n", "")
# What the hub's repository holds besides.
UNWANTED = (
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors",
    "safety_checker/config.json", "feature_extractor/preprocessor_config.json",
)  # fmt: skip
ELSEWHERE = ("git clone ADDRESS plateau", "cd plateau", "rsync", "python3 -m venv", ".venv/bin/python -m pip install .")


def read_blocks(page: str) -> list[tuple[list[str], list[str]]]:
    """Blocks of commands, each with the lines that stand below it as printed."""
    found = re.findall(r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?", page, re.S)
    return [(commands.replace("\\\n   ", "").splitlines(), printed.splitlines()) for commands, printed in found]


@dataclass
class Account:
    """The account on a cluster that the page starts from.

    Attributes:
        folder: where commands are typed.
        slurm: the cluster.
        hub: the hub's address.
        capture: what programs print.
    """

    folder: Path
    slurm: FakeSlurm
    hub: str
    capture: pytest.CaptureFixture[str]

    def type(self, line: str) -> str:
        """Run a line of the page; returns what it prints."""
        if line.startswith(ELSEWHERE):
            return ""
        if line.startswith("export "):
            name, value = shlex.split(line)[1].split("=", 1)
            os.environ[name] = os.path.expandvars(value)
            return ""
        words = shlex.split(os.path.expandvars(line))
        if words[0] == "git":
            assert words[-1].endswith("github.com/google/dreambooth")
            make_dreambench(self.folder / "dreambooth" / "dataset")
            return ""
        if words[0] == "make":
            return self._call(["make", "-n", "-C", str(ROOT), *words[1:]])
        if words[0] == "srun":
            words = words[next(place for place, word in enumerate(words) if word.endswith("python")) :]
        if words[0] == ".venv/bin/hf":
            return self._call(
                [str(Path(sys.executable).with_name("hf")), *words[1:]], HF_ENDPOINT=self.hub, HF_HUB_OFFLINE="0"
            )
        assert words[0] == ".venv/bin/python", f"no way to run this: {line}"
        if words[1] == "-c":
            return self._call([sys.executable, *words[1:]])
        return self._program(words[1:])

    def _call(self, words: list[str], **environment: str) -> str:
        done = subprocess.run(words, cwd=self.folder, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def _program(self, words: list[str]) -> str:
        """A program of this project, in this process; drivers get small work, unless they only plan."""
        if words[0].startswith("sweeps/") and "--dry-run" not in words and "--explain-preset" not in words:
            words = [*words, *SMALL]
        if "slurm.status" in words:
            self.work_off()
        code, out, err = self.run(words)
        assert code == 0, (words, err)
        return out

    def plan(self, *more: str) -> str:
        """The line with which a sweep on the cluster is refused."""
        code, _, err = self.run(["sweeps/lr_robustness.py", *shlex.split(FIG2), *SMALL, *more])
        assert code == 2, err
        return err.strip().splitlines()[-1]

    def job(self, *more: str) -> str:
        """The line that a job of a sweep writes into its log; it was sent before."""
        (spec, *_) = [str(files.spec) for files in SweepFolder(self.folder / "runs" / "lr_robustness").scan().values()]
        code, _, err = self.run(["-m", "slurm.job", spec, *more])
        assert code == 2, err
        return err.strip().splitlines()[0]

    def send(self, *more: str) -> None:
        """Send a small sweep."""
        code, _, err = self.run(["sweeps/lr_robustness.py", *shlex.split(FIG2), *SMALL, *more])
        assert code == 0, err

    def run(self, words: list[str]) -> tuple[int, str, str]:
        """Exit code and both streams of `python WORDS`."""
        self.capture.readouterr()
        is_module = words[0] == "-m"
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's own, that the module is known already
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "argv", words[is_module:])
            with pytest.raises(SystemExit) as ended:
                start_module(words[1]) if is_module else runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        said = self.capture.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    def work_off(self) -> None:
        """Do what the queue holds, as its jobs would."""
        for sweep in (self.folder / "runs").iterdir():
            if (sweep / "packs").is_dir():
                for files in SweepFolder(sweep).scan().values():
                    assert run_pack(files.spec, stop=lambda: False) == "done"
        self.slurm.forget()


def start_module(name: str) -> None:
    """`python -m NAME`."""
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def make_models(folder: Path) -> None:
    """The three folders of section 2, tiny."""
    make_pipeline(folder / "sd15")
    make_scorers(folder)


def write_cluster(folder: Path) -> None:
    """The page's `clusters.toml`."""
    (folder / "clusters.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.S)[1])


@contextmanager
def open_account(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Account]:
    """An empty account: a cluster, a hub that holds three repositories, and nothing else; commands are typed in its folder.

    Args:
        tmp_path: where everything lies.
        models: what the hub holds, from :func:`make_models`.
        monkeypatch: takes the environment back.
        capsys: what programs print.
    """
    folder, held = tmp_path / "plateau", tmp_path / "held"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, value in {"XDG_CACHE_HOME": tmp_path / "cache", "HOME": tmp_path, "PLATEAU_SETTLE_S": "0.1"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("FIG2", "HF_HOME"):  # what the page exports ends with the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(calibrate, "_measure_elsewhere", lambda setting, cell: {n: Cost(0.01, 500.0) for n in (1, 16)})
    slurm = make_slurm(tmp_path, monkeypatch)
    slurm.config["MaxArraySize"] = "1001"
    slurm.write()
    shutil.copytree(models, held)
    for name in UNWANTED:
        (held / "sd15" / name).parent.mkdir(exist_ok=True)
        (held / "sd15" / name).write_bytes(b"not wanted")
    dino = load_file(held / "dino" / "model.safetensors")
    torch.save(dino, held / "dino" / "pytorch_model.bin")
    (held / "dino" / "model.safetensors").unlink()
    repositories = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": held / "sd15", "openai/clip-vit-large-patch14": held / "clip",
        "facebook/dino-vits16": held / "dino",
    }  # fmt: skip
    with serve_hub(repositories) as hub:
        yield Account(folder, slurm, hub, capsys)
