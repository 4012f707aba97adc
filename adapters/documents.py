"""Read JSON and TOML from files that may be damaged or untrusted, and check their form where one is given.

A form says what a value may be: a `Form` below; a list of one form, for
lists of such values; a mapping of keys to forms, for objects, whose keys may be missing, or null, unless they are called
`"key!"`, and of which `"*"` holds the form of all keys that are not named (`ANY` without it).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from adapters.errors import BadInput

DEEPEST = 100  # levels of lists and objects in each other; nothing that anybody writes has a tenth of it
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG)
"""Errors of a place that holds no file; all others are the user's or the machine's to mend."""
TOO_DEEP = f"lists or tables in each other, more than {DEEPEST} deep"


class Form:
    """What one value may be.

    Args:
        says: in words, after "not".
        fits: whether a value is that.
    """

    def __init__(self, says: str, fits: Callable[[Any], bool]) -> None:
        self.says, self.fits = says, fits


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_place(value: Any) -> bool:
    if not _is_name(value) or value in ("", "."):
        return False
    parts = PurePosixPath(value).parts
    return not value.startswith("/") and ".." not in parts and all(len(part.encode()) < 256 for part in parts)


ANY = Form("anything", lambda value: True)
NUMBER = Form("a finite number", _is_number)
REAL = Form("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == value)
COUNT = Form("a whole number", lambda value: _is_number(value) and isinstance(value, int) and abs(value) < 2**63)
FLAG = Form("true or false", lambda value: isinstance(value, bool))
TEXT = Form("text", lambda value: isinstance(value, str))
NAME = Form("a name in one line", _is_name)
PLACE = Form("a path that stays inside its folder", _is_place)
PART = Form("a name without a slash", lambda value: value == "" or (_is_place(value) and "/" not in value))
SCALAR = Form(
    "a number, a name in one line, true or false",
    lambda value: _is_number(value) or _is_name(value) or isinstance(value, bool),
)

OBJECT = Form("an object", lambda value: isinstance(value, Mapping))
LIST = Form("a list", lambda value: isinstance(value, list))


def one_of(*values: str) -> Form:
    """The form of a word out of a few."""
    return Form(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def read_json(path: Path, form: Any = ANY) -> Any:
    """The content of a JSON file; a byte order mark is passed over.

    Raises:
        OSError: if it is missing or cannot be opened.
        BadInput: if it is no JSON, is nested too deeply, or has not the form; the message names it.
    """
    try:
        text = _read_text(path)
    except UnicodeDecodeError as error:
        raise BadInput(f"damaged file {path}: {error}") from None
    return parse_json(text, f"damaged file {path}", form)


def parse_json(text: str, where: str, form: Any = ANY) -> Any:
    """The value of a JSON text.

    Args:
        text: the text.
        where: how the error begins.
        form: what the value must be.

    Raises:
        BadInput: if it is no JSON, is nested too deeply, or has not the form.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadInput(f"{where}: {TOO_DEEP}") from None
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value, where)
    check_form(value, form, where)
    return value


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file, and its text; a byte order mark is passed over.

    Raises:
        OSError: if it is missing or cannot be opened.
        BadInput: if it is no TOML, or is nested too deeply; the message names it.
    """
    try:
        text = _read_text(path)
        tables = tomllib.loads(text)
        _check_depth(tables, str(path))
    except BadInput:
        raise
    except RecursionError:
        raise BadInput(f"{path}: {TOO_DEEP}") from None
    except ValueError as error:
        raise BadInput(f"{path} cannot be read as TOML: {error}") from None
    return tables, text


def check_form(value: Any, form: Any, where: str) -> None:
    """Hold a value to a form.

    Raises:
        BadInput: naming the place in the value, what stands there, and what may.
    """
    _, fits = _CHECKS.get(id(form)) or _CHECKS.setdefault(id(form), (form, _compile(form)))
    if not fits(value):  # the fault is looked for where there is one alone: folders have many thousands of values
        raise BadInput(f"{where}: {_find_fault(value, form, '')}")


_CHECKS: dict[
    int, tuple[Any, Callable[[Any], bool]]
] = {}  # by the form's place in memory, which stays while it is here


def _compile(form: Any) -> Callable[[Any], bool]:
    """Whether a value has a form, as fast as can be."""
    if isinstance(form, Form):
        return form.fits
    if isinstance(form, list):
        inner = _compile(form[0])
        return lambda value: isinstance(value, list) and all(map(inner, value))
    checks = {key.removesuffix("!"): _compile(wanted) for key, wanted in form.items() if key != "*"}
    needed, others = [key[:-1] for key in form if key.endswith("!")], _compile(form["*"]) if "*" in form else None

    def fits(value: Any) -> bool:
        if not isinstance(value, dict) or any(value.get(name) is None for name in needed):
            return False
        for key, item in value.items():
            check = checks.get(key, others)
            if check is others and others is not None and not key.isprintable():
                return False
            if item is not None and check is not None and not check(item):
                return False
        return True

    return fits


def _find_fault(value: Any, form: Any, at: str) -> str | None:
    """What keeps a value from having a form; None if it has it."""
    wanted = form if isinstance(form, Form) else OBJECT if isinstance(form, Mapping) else LIST
    if not wanted.fits(value):
        return f"{at or 'it'} is {_short(value)}, not {wanted.says}"
    if isinstance(form, Mapping):
        return _find_fault_inside(value, form, f"{at}." if at else "")
    if isinstance(form, list):
        faults = (_find_fault(item, form[0], f"{at}[{number}]") for number, item in enumerate(value))
        return next(filter(None, faults), None)
    return None


def _find_fault_inside(value: Mapping[str, Any], form: Mapping[str, Any], at: str) -> str | None:
    for key, wanted in form.items():
        name = key.removesuffix("!")
        if key.endswith("!") and value.get(name) is None:
            return f"{at}{name} is missing"
        if key != "*" and value.get(name) is not None and (fault := _find_fault(value[name], wanted, at + name)):
            return fault
    for name in value.keys() - {key.removesuffix("!") for key in form} if "*" in form else ():
        fault = _find_fault(name, NAME, f"{at}a key")
        if fault is None and value[name] is not None:
            fault = _find_fault(value[name], form["*"], at + name)
        if fault:
            return fault
    return None


def _check_depth(value: Any, where: str) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        if not level:
            return
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    raise BadInput(f"{where}: {TOO_DEEP}")


def _read_text(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_bytes().decode("utf-8-sig")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def flush(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
