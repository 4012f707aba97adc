"""Find the file of an adapter, and read the configuration beside it; nothing is ever unpickled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from adapters.documents import OBJECT, read_json
from adapters.errors import BadInput
from adapters.peft_format import OWN_FILE, PEFT_FILE
from adapters.words import counted

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def find_file(path: Path) -> Path:
    """The file that holds an adapter's tensors.

    Args:
        path: the file, or a folder that holds it.

    Raises:
        BadInput: there is none, there are several, or it is a pickle or one part of an adapter.
    """
    if path.is_dir():
        for name in (OWN_FILE, PEFT_FILE):
            if (path / name).is_file():
                return path / name
        found = sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return _whole(found[0])
        if found:
            raise BadInput(
                f"{path} holds {counted(len(found), 'safetensors file')}: name the one to read, {found[0].name} or another"
            )
        pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
        if not pickles:
            raise BadInput(f"{path} holds no adapter: neither {OWN_FILE} nor {PEFT_FILE}")
        path = pickles[0]
    if not path.is_file():
        raise BadInput(f"no file or folder {path}")
    if path.suffix in PICKLES:
        made = path.with_suffix(".safetensors").name
        code = (
            f"import torch, safetensors.torch as s; s.save_file(torch.load('{path.name}', weights_only=True), '{made}')"
        )
        raise BadInput(f'{path} is a pickle, which can run code when read; convert it: python -c "{code}"')
    return _whole(path)


def _whole(file: Path) -> Path:
    if part := re.fullmatch(r".+-(\d{5})-of-(\d{5})\.safetensors", file.name):
        raise BadInput(f"{file} is part {int(part[1])} of {int(part[2])} of an adapter: save it as one file")
    return file


def read_config(file: Path) -> dict[str, Any]:
    """The configuration beside a file.

    Raises:
        BadInput: it is damaged, or no JSON object.
    """
    try:
        config: dict[str, Any] = read_json(file, OBJECT)
    except OSError as error:
        raise BadInput(f"{file} is damaged: {error}") from None
    return config
