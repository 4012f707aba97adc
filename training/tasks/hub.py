"""Fetch models and scorers by their names on Hugging Face's hub into its cache, or say in one line why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

VARIANTS = ("*.fp16.*", "*.non_ema.*")  # further copies of the same weights, which nobody reads here
GUIDE = "docs/real_runs.md"


def fetch(name: str, revision: str | None, patterns: Sequence[str], kind: str = "model") -> Path:
    """The folder of a repository in the hub's cache, where what is missing is downloaded first.

    Args:
        name: ORG/NAME.
        revision: a branch, a tag or a commit; None for the main branch.
        patterns: files wanted.
        kind: "model" or "dataset".

    Raises:
        Exception: huggingface_hub's own; :func:`explain` puts it in words.
    """
    import huggingface_hub
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it says every retry, and then the error
    found = huggingface_hub.snapshot_download(
        name, revision=revision, repo_type=kind, allow_patterns=list(patterns), ignore_patterns=list(VARIANTS)
    )
    return Path(found)


def explain(what: str, name: str, error: Exception) -> str:
    """One line on why something cannot be had from the hub, and what helps.

    Args:
        what: "model", "scorer" or "data set".
        name: as the user called it, ORG/NAME or ORG/NAME@REVISION.
        error: what :func:`fetch` raised.
    """
    from huggingface_hub import constants, errors

    login = "run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"{what} {name!r} is gated: accept its licence on its page of the hub, then {login}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what} {name!r} is no folder, and not on the hub, or private there: check its name; if it is private, {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} {name!r} has no such revision on the hub: give a branch, a tag or a commit after the @"
    if isinstance(error, errors.LocalEntryNotFoundError):
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached from here"
        return (
            f"{what} {name!r} is no folder, and not whole in the hub's cache, {constants.HF_HUB_CACHE}; {reason}: fetch it "
            f"where there is a network, as {GUIDE} says, or give a folder"
        )
    return (
        f"{what} {name!r} cannot be had from the hub: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    )
