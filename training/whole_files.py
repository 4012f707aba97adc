"""Write files that no reader sees half done: aside, flush, rename; and remove what a killed writer left.

The file aside is called `.<name>.<machine>-<process id>.tmp`; no reader takes it for a file. What a killed writer has left goes
with the first file that another process writes into the folder. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import hashlib
import json
import math
import os
import re
import socket
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters import documents
from adapters.documents import flush
from adapters.errors import BadInput

ABANDONED_S = 86_400.0  # age, by the file system's own clock, at which another machine's file aside is nobody's
CRC = "crc32"  # the key of the checksum of a JSON object
_looked_through: set[Path] = set()  # folders in which this process has looked for what killed writers have left
_named: set[Path] = set()  # damaged files that were told of
_ASIDE = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)(-link)?\.tmp")


class StoreError(BadInput):
    """A folder that cannot be written or read: full disk, no permission, damage. One line, nothing lost."""


class DamagedFile(StoreError):
    """A file whose content is not what was written."""


class Unreadable(StoreError):
    """A file that is there, and that this user, or this machine now, cannot read: neither damaged nor to be touched."""


@functools.cache
def machine() -> str:
    """This machine's boot and process-id namespace: equal only where process ids mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def name_aside(path: Path, more: str = "") -> Path:
    """A name beside `path` that no other process of any machine uses."""
    return path.with_name(f".{path.name}.{_writer()}{more}.tmp")


def _writer() -> str:
    """Eight digits that stand for this machine, and the process id: ids alone repeat from machine to machine."""
    code = hashlib.sha256(f"{machine()} {socket.gethostname()}".encode()).hexdigest()[:8]
    return f"{code}-{os.getpid()}"


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to disk and rename it into place.

    Raises:
        StoreError: if the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    aside = name_aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
        _look_through(path)
    except OSError as error:
        raise store_error(error, path) from error
    finally:
        remove_quietly(aside)


def _look_through(written: Path) -> None:
    """Remove what killed writers have left beside a file that was just written: once a folder and process."""
    if written.parent not in _looked_through:
        _looked_through.add(written.parent)
        with contextlib.suppress(OSError):
            remove_asides(written.parent, before=written.stat().st_mtime - ABANDONED_S)


def store_error(error: OSError, path: Path) -> StoreError:
    """One clear line for an operating-system error at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left to write {path}; nothing computed so far is lost: free space, run it again")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StoreError(f"cannot write {path}: {reason}; nothing computed so far is lost: mend it, run it again")


def unreadable(error: OSError, path: Path) -> StoreError:
    """One clear line for an error of reading `path`: `Unreadable` unless no file is in its place."""
    line = f"{path} cannot be read: {os.strerror(error.errno) if error.errno else error}"
    return StoreError(line) if error.errno in documents.NO_FILE else Unreadable(line)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder by their names, in order; none where there is no folder.

    Raises:
        StoreError: if it cannot be read, which `Path.glob` passes over without a word.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder) if fnmatch.fnmatchcase(name, pattern))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(error, folder) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a mixture."""
    with writing(path) as aside:
        aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_signed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum, which `read_json` looks at, as `write_json` does."""
    write_json(path, sign(value))


def sign(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the CRC-32 of what it says."""
    said = json.loads(json.dumps(value, allow_nan=False))
    return {**said, CRC: _crc_of(said)}


def _crc_of(said: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in said.items() if key != CRC}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def read_json(path: Path, form: Any = documents.ANY, remedy: str = "") -> Any:
    """Read JSON of a form (`adapters.documents`); `remedy` says what the user can do about damage.

    Raises:
        FileNotFoundError: if there is no file.
        DamagedFile: if it is no JSON, has another form, or a checksum of something else; the message names the file.
        StoreError: if it cannot be opened.
    """
    try:
        found = documents.read_json(path)
        if isinstance(found, dict) and found.pop(CRC, crc := _crc_of(found)) != crc:
            raise BadInput(f"damaged file {path}: its checksum is another than when it was written")
        documents.check_form(found, form, f"damaged file {path}")
        return found
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(error, path) from None
    except BadInput as error:
        raise DamagedFile(f"{error}; {remedy}" if remedy else error) from None


def read_quietly(path: Path, form: Any = documents.OBJECT) -> dict[str, Any]:
    """A JSON file's object; empty if it is not there, or if it cannot be read, which is said once on stderr."""
    try:
        found: dict[str, Any] = read_json(path, form)
    except FileNotFoundError:
        return {}
    except StoreError as error:
        if path not in _named:
            _named.add(path)
            print(f"{error}: going on without it", file=sys.stderr)
        return {}
    return found


def check_stored(value: Any, form: Any, path: Path) -> None:
    """Hold what a file says to a form.

    Raises:
        DamagedFile: naming the file, the place in it, and what may stand there.
    """
    try:
        documents.check_form(value, form, f"damaged file {path}")
    except BadInput as error:
        raise DamagedFile(error) from None


def join_inside(folder: Path, name: str) -> Path:
    """A path that a file names, below a folder; a link in between may not lead out of it either.

    Raises:
        StoreError: if it lies elsewhere.
    """
    path, parts = folder / name, name.split("/")
    below = [folder.joinpath(*parts[: number + 1]) for number in range(len(parts))]
    lexically = not name.startswith("/") and ".." not in parts and name not in ("", ".")
    if not lexically or (any(map(os.path.islink, below)) and not is_inside(path, folder)):
        raise StoreError(f"{name!r} does not lie inside {folder}: it is neither read nor written")
    return path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies below a folder, links followed."""
    try:
        whole, above = os.path.realpath(path), os.path.realpath(folder)
    except (OSError, ValueError):
        return False
    return whole.startswith(os.path.join(above, ""))


def crc_of_file(path: Path) -> str:
    """The CRC-32 of a file's bytes.

    Raises:
        StoreError: if it cannot be read.
    """
    crc = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                crc = zlib.crc32(block, crc)
    except OSError as error:
        raise unreadable(error, path) from None
    return f"{crc:08x}"


def create_json(path: Path, value: Any) -> bool:
    """Make a file with all of its content unless it is there, which only one process of all machines can do.

    Returns:
        Whether it was made now.

    Raises:
        StoreError: if it cannot be written.
    """
    aside = name_aside(path, "-link")  # `write_json` has an aside of its own
    try:
        write_json(aside, value)
        os.link(aside, path)
        return True
    except FileExistsError:
        return aside.stat().st_nlink == 2  # a file server's answer to our first call was lost, and it was asked twice
    except OSError as error:
        raise store_error(error, path) from None
    finally:
        remove_quietly(aside)


def remove_quietly(path: Path) -> None:
    """Remove a file, if it is there and can be."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def remove_asides(folder: Path, *, all_writers: bool = False, before: float = -math.inf) -> None:
    """Remove what killed writers have left in a folder.

    Args:
        folder: where; what lies deeper stays.
        all_writers: whether nobody else may be writing there; if not, only what processes of this machine that are
            over have left is removed.
        before: when, by the file system's clock, a file aside of another machine must have been written to be removed too.
    """
    own = _writer().partition("-")[0]
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if match := _ASIDE.fullmatch(path.name):
                old = match["machine"] != own and path.stat().st_mtime < before
                if all_writers or old or (match["machine"] == own and not is_running(int(match["pid"]))):
                    remove_quietly(path)


def is_running(pid: int) -> bool:
    """Whether this machine has a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
