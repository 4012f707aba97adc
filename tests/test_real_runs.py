"""docs/real_runs.md: every command is run in its order, small; what it says is printed, is; every error line is provoked."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.make_account import FIG2, PAGE, Account, make_models, open_account, read_blocks, write_cluster
from tests.make_dreambench import make_dreambench
from tests.make_hub import COMMIT, turn_to
from training.store import find_runs
from training.tasks.pipeline import content_hash


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three folders of section 2."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def account(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Account]:
    with open_account(tmp_path, models, monkeypatch, capsys) as opened:
        yield opened


def test_every_command_runs_in_its_order_and_prints_what_it_says(
    account: Account, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_to(account.hub, tmp_path / "hub", monkeypatch)
    write_cluster(account.folder)
    for commands, printed in read_blocks(PAGE):
        for line in commands:
            out = account.type(line)
        for line in printed:
            assert line in out.splitlines(), f"{commands[-1]} does not print: {line}"

    sd15 = {str(path.relative_to(models / "sd15")) for path in (models / "sd15").rglob("*") if path.is_file()}
    got = account.folder / "models" / "sd15"
    assert {str(p.relative_to(got)) for p in got.rglob("*") if p.is_file() and ".cache" not in p.parts} == sd15
    assert content_hash(got) == content_hash(models / "sd15"), "what hf keeps in .cache is not read"
    sweeps = {sweep.name: [run.status() for run in find_runs(sweep)] for sweep in (account.folder / "runs").iterdir()}
    assert {name: set(found) for name, found in sweeps.items() if found} == {
        "trial": {"finished"},
        "lr_robustness": {"finished"},
    }
    for path in ("runs/trial/fig2_lr_robustness.png", "runs/lr_robustness/fig2_lr_robustness.pdf",
                 "drawn/lr_robustness/fig2_lr_robustness.pdf", "drawn/lr_robustness/fig2_lr_robustness.csv"):  # fmt: skip
        assert (account.folder / path).stat().st_size > 1000, path


# The lines of its last table.

Provoke = Callable[[Account, pytest.MonkeyPatch], str]


def read_lines() -> list[str]:
    """Every line that the table of what goes wrong quotes."""
    table = PAGE.split("| the line | what helps |")[1].split("\n\n")[0]
    return [two or one for two, one in re.findall(r"^\| (?:``(.*?)``|`(.*?)`) \| ", table, re.M)]


def without_cuda(account: Account, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    inline = FIG2.replace("--cluster mycluster", "--device cuda")
    code, _, err = account.run(["sweeps/lr_robustness.py", *shlex.split(inline)])
    assert code == 2
    return err.strip()


def job_without_cuda(account: Account, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    account.send("--gpus", "1")
    return account.job()


def unknown_cluster(account: Account, patch: pytest.MonkeyPatch) -> str:
    (account.folder / "clusters.toml").unlink()
    return account.plan()


def unknown_partition(account: Account, patch: pytest.MonkeyPatch) -> str:
    return account.plan("--partition", "gpus")


def no_sbatch(account: Account, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("PATH", "/nowhere")
    return account.plan()


def refused_by_sbatch(account: Account, patch: pytest.MonkeyPatch) -> str:
    account.slurm.refusal = "Invalid account or account/partition combination specified"
    account.slurm.write()
    return account.plan()


def missing_model(account: Account, patch: pytest.MonkeyPatch) -> str:
    turn_to(account.hub, account.folder / "hub", patch)
    shutil.rmtree(account.folder / "models" / "sd15")
    return account.plan()


def offline(account: Account, patch: pytest.MonkeyPatch) -> str:
    return account.plan("--model", f"stable-diffusion-v1-5/stable-diffusion-v1-5@{COMMIT}")


def gated(account: Account, patch: pytest.MonkeyPatch) -> str:
    turn_to(account.hub, account.folder / "hub", patch)
    return account.plan("--model", "org/gated")


def missing_revision(account: Account, patch: pytest.MonkeyPatch) -> str:
    turn_to(account.hub, account.folder / "hub", patch)
    return account.plan("--model", "org/norevision@v9")


def half_a_model(account: Account, patch: pytest.MonkeyPatch) -> str:
    (account.folder / "models" / "sd15" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return account.plan()


def dino_not_converted(account: Account, patch: pytest.MonkeyPatch) -> str:
    (account.folder / "models" / "dino" / "model.safetensors").unlink()
    return account.plan()


def missing_picture(account: Account, patch: pytest.MonkeyPatch) -> str:
    (account.folder / "dreambooth" / "dataset" / "backpack" / "03.jpg").unlink()
    return account.plan()


def missing_subject(account: Account, patch: pytest.MonkeyPatch) -> str:
    shutil.rmtree(account.folder / "dreambooth" / "dataset" / "vase")
    return account.plan("--subjects", "dreambooth/dataset", "30")


def odd_resolution(account: Account, patch: pytest.MonkeyPatch) -> str:
    for part, widths in (("unet", (320, 640, 1280, 1280)), ("vae", (128, 256, 512, 512))):
        path = account.folder / "models" / "sd15" / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": widths}))
    return account.plan("--resolution", "500")


def another_model(account: Account, patch: pytest.MonkeyPatch) -> str:
    folder = account.folder / "runs" / "lr_robustness"
    (folder / "packs").mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"schema": 1, "model": "another", "model_hash": "0123"}))
    (folder / "packs" / "p.json").write_text("{}")
    return account.plan()


def changed_pictures(account: Account, patch: pytest.MonkeyPatch) -> str:
    account.send()
    for path in (account.folder / "dreambooth" / "dataset").glob("backpack*/00.jpg"):
        shutil.copyfile(path.with_name("01.jpg"), path)
    return account.job()


def changed_code(account: Account, patch: pytest.MonkeyPatch) -> str:
    account.send()
    return account.job("--code", "0123456789ab")


PROVOKE: dict[str, Provoke] = {
    "--device is cuda": without_cuda, "packs of this sweep train on cuda": job_without_cuda, "--cluster is": unknown_cluster,
    "--partition is": unknown_partition, "no sbatch on the PATH": no_sbatch, "sbatch refused": refused_by_sbatch,
    "is no folder, and not on the hub": missing_model, "not whole in the hub's cache": offline, "is gated": gated,
    "no such revision": missing_revision, "has no unet/*.safetensors": half_a_model, "scorer folder": dino_not_converted,
    "no whole copy": missing_picture, "--subjects is": missing_subject, "--resolution is": odd_resolution,
    "belongs to model": another_model, "changed since": changed_pictures, "submitted with code": changed_code,
}  # fmt: skip


@pytest.mark.parametrize("quoted", read_lines())
def test_error_is_printed_as_it_is_quoted(
    quoted: str, account: Account, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cluster(account.folder)
    shutil.copytree(models, account.folder / "models")
    make_dreambench(account.folder / "dreambooth" / "dataset")
    (provoke,) = [provoke for words, provoke in PROVOKE.items() if words in quoted]
    line = provoke(account, monkeypatch)
    assert re.fullmatch(re.escape(quoted).replace(re.escape("..."), ".+"), line), line
