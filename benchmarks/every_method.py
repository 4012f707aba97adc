"""One training step of every registered method, and of two of PEFT's: compared with LoRA's, and in a pack of 8 with 8 runs alone.

All variants share the frozen U-Net's tensors and take turns. On a CPU they run on one thread, as in the front door's worker
processes.
"""

from __future__ import annotations

from torch import Tensor

from adapters import METHODS, parse_method
from benchmarks.methods import Batch, make_batch, our_step
from benchmarks.rows import Row
from benchmarks.scene import Effort, Place, Scene, threads
from benchmarks.timing import interleave, ratio_of
from training.tasks.task import share

PACK = 8
AIM, PACK_AIM = 1.3, 2.0  # of methods that are meant to be as fast as LoRA, and to pack as well
OF_PEFT = ("peft:hira", "peft:boft")  # whose layers a pack calls for all runs at once
DENSE = ("full", "naive", "oft", "coft")  # reported without an aim for the pack: their work grows with every replica


def measure(place: Place, device: str, effort: Effort) -> list[Row]:
    """Two rows for each method on one device."""
    scene = Scene(place, device)
    unet, one = scene.pipeline.unet, make_batch(scene)
    many = Batch(repeat(one.noisy), repeat(one.times), repeat(one.text), repeat(one.target))
    with threads(1):
        names = {name: method.label for name, method in METHODS.items()}
        names |= {name: parse_method(name).label for name in OF_PEFT}
        steps = {name: our_step(share(unet), one, name) for name in names}
        steps |= {f"{name} x {PACK}": our_step(share(unet), many, name, PACK) for name in names}
        times = interleave(steps, rounds=effort.rounds, laps=effort.laps, device=scene.device)
    rows = []
    for name, label in names.items():
        if name != "lora":
            aim = None if name == "full" or name in OF_PEFT else AIM
            rows.append(Row(f"{label}'s step over LoRA's, alone", ratio_of(times[name], times["lora"]), aim))
    for name, label in names.items():
        gain = ratio_of(PACK * times[name], times[f"{name} x {PACK}"])
        aim = None if name in DENSE or name in OF_PEFT else PACK_AIM
        rows.append(Row(f"{label}: pack of {PACK} against its cells alone", gain, aim, ">="))
    return rows


def repeat(part: Tensor) -> Tensor:
    """One part of a batch, as often as the pack has replicas."""
    return part.repeat(PACK, *[1] * (part.ndim - 1))
