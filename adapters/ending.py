"""End every program in the same way: an exit code and at most one line, even if its streams are closed. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TextIO

from adapters.errors import BadInput, printable

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by their numbers
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT)
_OF_A_FILE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ESTALE)
NOBODY_READS = 128 + 13  # what a shell says of a program that SIGPIPE has ended


def end_well(program: Callable[[], int]) -> int:
    """Run a program to its exit code.

    Words that are not UTF-8 are refused. A character that a stream's encoding lacks is escaped. A stream that was closed
    (`>&-`) leads to nothing. A program whose reader leaves (`| head`), or whose terminal is gone, stops without a word.
    SIGTERM and SIGHUP unwind it like Ctrl-C.

    Args:
        program: returns its exit code.

    Returns:
        The program's own; 2 after bad input, on a full disk or for a file that cannot be read, which is one line on stderr;
        130 after Ctrl-C; 141 where nobody reads.
    """
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with _unwound():
                return _run(program)
        finally:
            sys.stdout.flush()  # at the interpreter's own exit nobody could answer an error
    except OSError as error:
        lost = [_is_lost(stream) for stream in (sys.stdout, sys.stderr)]
        if error.errno in _OF_A_DISK or (error.errno in _OF_A_FILE and error.filename):
            with contextlib.suppress(OSError):
                said = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
                print("error:", printable(said), file=sys.stderr)
            return 2
        if not any(lost):
            raise
        return NOBODY_READS


def _run(program: Callable[[], int]) -> int:
    try:
        check_names([*sys.argv, here()])
        check_empty(sys.argv[1:])
        return program()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def check_names(words: Sequence[str]) -> None:
    """Refuse words that are not read as UTF-8: libraries look for files of other names then, and no file may hold such a word.

    Raises:
        BadInput: naming the first, and what to do.
    """
    for word in words:
        with contextlib.suppress(UnicodeEncodeError):
            if word.encode() == os.fsencode(word):
                continue
        encoding = sys.getfilesystemencoding()
        mend = "call it by other letters" if encoding == "utf-8" else "set PYTHONUTF8=1, or a locale of UTF-8"
        raise BadInput(f"'{printable(word)}' is no name in UTF-8 (names are read as {encoding} here): {mend}")


def check_empty(words: Sequence[str]) -> None:
    """Refuse empty words, as a shell makes them of a variable that is not set: as a path they would be the current folder.

    Raises:
        BadInput: naming the flag, or the place of the word.
    """
    flag = ""
    for place, word in enumerate(words, 1):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            flag, word = name, value if equals else name
        if not word.strip():
            raise BadInput(
                f"{flag or f'word {place} of the command line'} is {word!r}; allowed: a word that is not empty"
            )


def here() -> str:
    """The current folder; empty where it is gone."""
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


@contextlib.contextmanager
def _unwound() -> Iterator[None]:
    """Turn signals that would end the process on the spot into exceptions, so that what it has started and made goes too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    mine = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []  # whose thread it is handles signals
    for number in mine:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def open_closed_streams() -> None:
    """Open the standard streams that are closed on nothing: else the next file gets their number, and what is printed."""
    for number, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(nothing, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _is_lost(stream: TextIO | io.TextIOWrapper) -> bool:
    """Whether a stream takes nothing any more; then it leads to nothing, and what it holds is gone at the exit."""
    try:
        number = stream.fileno()
        watch = select.poll()
        watch.register(number, 0)  # asks whether the other end is gone, which is always told
        lost = bool(watch.poll(0))
        stream.flush()
    except io.UnsupportedOperation:  # in memory
        return False
    except OSError:
        lost = True
    if lost:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, number)
        os.close(nothing)
    return lost
