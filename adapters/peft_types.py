"""Which of HF PEFT's types train as packs: those whose layers can be called for stacked tensors. Imports no torch."""

from __future__ import annotations

PEFT = "peft:"  # what the name of a method begins with that is HF PEFT's
PACKED = frozenset(
    ["boft", "deft", "delora", "glora", "gralora", "hira", "hra", "ia3", "lora", "peanut", "psoft", "vera"]
)
"""Types whose layers give, under `torch.func.vmap` over their tensors, what they give one replica at a time
(tests/test_peft_pack.py); others draw, write in place, hook into gradients, or know no rule for a batch."""


def packs(method: str) -> bool:
    """Whether runs of a method share a pack, as all do but some of PEFT's."""
    return not method.startswith(PEFT) or method.removeprefix(PEFT) in PACKED
