"""Set up the libraries of a process that trains."""

from __future__ import annotations

import ctypes


def quiet_libraries() -> None:
    """Switch off the libraries' own progress bars and notices, which would break the live table."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step, instead of giving them back and faulting fresh pages in.

    By default it returns large blocks at once: readings of a pack then took twice as long. Elsewhere nothing happens.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names in malloc.h
    for option, value in ((trim_threshold, 256 << 20), (top_pad, 64 << 20), (mmap_threshold, 32 << 20)):
        set_option(option, value)
