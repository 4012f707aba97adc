"""Where randomness comes from: a seed of its own for each thing that is drawn, from names and numbers, never from a state.

What is drawn depends on (seed, step) alone, so that a resumed run takes the same draws, and a run in a pack those of the run
alone. Draw on the CPU (`torch.Generator().manual_seed(seed_of("batch", seed, step))`) and send it to the device
(`training.accelerator.send`): then every device draws the same.
"""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on the parts alone, on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
