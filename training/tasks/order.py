"""The order in which a run goes through what it is trained on: the whole pool, shuffled anew each time."""

from __future__ import annotations

import functools

import torch

from training.seeds import seed_of

WINDOW = 8  # batches out of which those of one length are made


def shuffled(seed: int, pool: str, index: int, size: int) -> int:
    """What stands at place `index` of an endless order that goes through a pool of `size` things, shuffled anew each time."""
    epoch, place = divmod(index, size)
    return _order(seed, pool, epoch, size)[place]


@functools.lru_cache(maxsize=256)
def _order(seed: int, pool: str, epoch: int, size: int) -> tuple[int, ...]:
    return _permutation(size, pool, seed, epoch)


def alike(seed: int, pool: str, index: int, lengths: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Batch `index` of an endless order in which those of a batch are of about one length, so that little is filled up.

    The pool is shuffled, every eight batches' worth is sorted by length and cut into batches, and the batches are shuffled: alike
    for every run, so that the short ones of a pack's runs meet. Where the pool is no multiple of a batch, its last one is
    filled up with the first of the shuffled pool.

    Args:
        seed: of the run.
        pool: its name.
        index: from 0 on.
        lengths: of the pool's things.
        batch: how many are drawn at once.
    """
    count = -(-len(lengths) // batch)
    epoch, place = divmod(index, count)
    return _batches(seed, pool, epoch, lengths, batch)[_permutation(count, "batches", epoch)[place]]


@functools.lru_cache(maxsize=256)
def _batches(seed: int, pool: str, epoch: int, lengths: tuple[int, ...], batch: int) -> list[tuple[int, ...]]:
    order = _order(seed, pool, epoch, len(lengths))
    while len(order) % batch:
        order += order[: batch - len(order) % batch]
    found = []
    for a in range(0, len(order), WINDOW * batch):
        window = sorted(order[a : a + WINDOW * batch], key=lambda place: (lengths[place], place))
        found += [tuple(window[b : b + batch]) for b in range(0, len(window), batch)]
    return found


@functools.lru_cache(maxsize=256)
def _permutation(size: int, *names: object) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed_of(*names))
    return tuple(torch.randperm(size, generator=generator).tolist())
