"""Load a user's own method: one file that holds one :class:`adapters.base.Adapter`.

A file is known by its name and the hash of its content, ``mymethod@1a2b3c4d5e``: that name is part of every run's identity,
so that an edited file is another method, and a sweep keeps a copy of the file it was trained with.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from adapters import Method
from adapters.base import Adapter, Role
from adapters.ending import here
from adapters.errors import BadInput
from adapters.method_words import WORDS


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None: no mode that every call goes through


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, _set_device),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "the current folder": (here, os.chdir),
}
"""What holds for the whole process and changes numbers or files elsewhere -> what reads it, and what sets it."""


def register(path: str, known: dict[str, Method]) -> str:
    """Run a file and note its class as a method; a file that was read before is not run again.

    Args:
        path: The file, or a copy of one that :func:`source` has told of.
        known: Where methods of files are noted, by name.

    Returns:
        The method's name.

    Raises:
        BadInput: The file is missing, raises, or holds no class, or several, or one without ``draw`` and ``weight``, or
            one with an option of a name that stands for a rate or the label, or with tables of another form; or it sets one of
            :data:`SETTINGS`, which its own numbers may hang on. Random states are put back without a word.
    """
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(f"method file {path!r} cannot be read: {error.strerror}") from None
    stem = file.stem.partition("@")[0]
    digest = hashlib.sha256(content).hexdigest()[:10]
    name = f"{stem}@{digest}"
    if name not in known:
        module = f"adapters_own_{stem}_{digest}"
        cls = _load_class(file, module)
        _check_tables(cls, path)
        if taken := set(cls.OPTIONS) & set(WORDS):
            raise BadInput(
                f"class {cls.__name__} of method file {path!r} has the option {min(taken)!r}: every method has that word "
                f"({', '.join(WORDS)}); call the option something else"
            )
        known[name] = Method(module, cls.__name__, name, "", "", "", dict(cls.OPTIONS))
    return name


def _check_tables(cls: type[Adapter], path: str) -> None:
    """Check that OPTIONS and ROLES have the form that the contract gives them."""
    roles = get_args(Role)
    forms: tuple[tuple[str, Callable[[object], bool], str], ...] = (
        ("OPTIONS", _is_choices, '{"strength": (0.5, float)}, the default first'),
        ("ROLES", lambda role: role in roles, f"{{name: role}}, roles are {', '.join(roles)}"),
    )
    for name, fits, allowed in forms:
        table = getattr(cls, name)
        if not isinstance(table, Mapping) or not all(_is_name(key) and fits(value) for key, value in table.items()):
            raise BadInput(
                f"{name} of class {cls.__name__} of method file {path!r} is {table!r:.80}; allowed: a dictionary as {allowed}"
            )


def _is_name(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch(r"[\w-]+", key) is not None


def _is_choices(value: object) -> bool:
    """Whether these are the values of an option: texts and numbers as a command line can give them, and types of numbers."""
    if not isinstance(value, (tuple, list)) or not value:
        return False
    return all(
        choice in (float, int) or isinstance(choice, (int, float)) or (isinstance(choice, str) and "," not in choice)
        for choice in value
    )


def source(name: str) -> Path:
    """The file from which a method was read in this process."""
    module = "adapters_own_{}_{}".format(*name.split("@"))
    return Path(str(sys.modules[module].__file__))


def is_own(name: str) -> bool:
    """Whether a method's name is that of a file."""
    return "@" in name


def _load_class(file: Path, module_name: str) -> type[Adapter]:
    """Run the file as a module and return the one class in it."""
    spec = importlib.util.spec_from_file_location(module_name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with _put_back() as changed:
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        text = " ".join(str(error).split())
        raise BadInput(
            f"method file {str(file)!r} raises at import: {type(error).__name__}: {text}{_line(error, file)}"
        ) from None
    try:
        if changed:
            raise BadInput(
                f"method file {str(file)!r} sets {changed[0]} when it is read, for all that comes after; "
                "allowed: to set it inside its methods, and back"
            )
        return _the_one(
            [
                value
                for value in vars(module).values()
                if isinstance(value, type) and issubclass(value, Adapter) and value.__module__ == module_name
            ],
            file,
        )
    except BadInput:
        del sys.modules[module_name]
        raise


@contextlib.contextmanager
def _put_back() -> Iterator[list[str]]:
    """Put back what is set for the whole process meanwhile; the list then says which of :data:`SETTINGS` were, and to what."""
    before = {name: get() for name, (get, _) in SETTINGS.items()}
    states, changed = (random.getstate(), np.random.get_state()), list[str]()
    try:
        with torch.random.fork_rng(devices=[]):
            yield changed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name, (get, put) in SETTINGS.items():
            if (now := get()) != before[name]:
                changed.append(f"{name} to {now}")
                put(before[name])


def _the_one(classes: list[type[Adapter]], file: Path) -> type[Adapter]:
    if len(classes) != 1:
        names = ", ".join(sorted(cls.__name__ for cls in classes)) or "none"
        raise BadInput(
            f"method file {str(file)!r} must hold exactly one subclass of adapters.base.Adapter, has: {names}"
        )
    cls = classes[0]
    for member in ("draw", "weight"):
        if getattr(cls, member) is getattr(Adapter, member):
            raise BadInput(f"class {cls.__name__} of method file {str(file)!r} defines no {member}()")
    return cls


def _line(error: BaseException, file: Path) -> str:
    """Where in the file it went wrong."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file.resolve()
    ]
    return f" (line {lines[-1]})" if lines else ""
