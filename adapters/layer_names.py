"""How other programs name an adapted matrix, and its path in diffusers' U-Net or transformers' text encoder.

- HF PEFT: ``base_model.model.<path>.lora_A.weight``; diffusers: ``unet.<path>.lora_A.weight``, older
  ``unet.<path>.lora.down.weight`` and ``unet.<attention>.processor.to_q_lora.down.weight``;
- kohya's sd-scripts: ``lora_unet_<path with underscores>.lora_down.weight``, ``.alpha``, LyCORIS' ``.dora_scale``; for SDXL
  with the blocks of Stability's own code, ``lora_unet_input_blocks_4_1_...`` for ``down_blocks.1.attentions.0...``; LyCORIS by
  itself ``lycoris_<path with underscores>``;
- ComfyUI: ``diffusion_model.<path in Stability's code>.lora_A.weight``;
- cloneofsimo/lora: ``unet:<number>:down``, numbered in the order of the modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

TEXT_ENCODER, TEXT_ENCODER_2 = "text_encoder.", "text_encoder_2."
TEXT_ENCODERS = (TEXT_ENCODER, TEXT_ENCODER_2)
"""Beginnings of the paths of text encoders' matrices, of which SDXL has two; a U-Net's paths begin as its own modules do."""

ROLES = {
    "lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B", "lora.down": "A", "lora.up": "B",
    "lora_linear_layer.down": "A", "lora_linear_layer.up": "B", "down": "A", "up": "B", "alpha": "alpha",
    "lora_magnitude_vector": "magnitude", "dora_scale": "magnitude",
    "delora_A": "A", "delora_B": "B", "delora_lambda": "lam", "delora_w_norm": "norms",
    "frozen_C": "A_start", "frozen_D": "B_start",
}  # fmt: skip
"""Last part of a tensor's name, and what it is here. The released DeLoRA code's C and D are frozen copies of A and B."""

_OF_PEFT = "|".join(role for role in ROLES if role.startswith(("lora_A", "lora_B", "lora_magnitude", "delora_")))
_KEY = re.compile(rf"(.+?)[._:]({'|'.join(map(re.escape, ROLES))})(?:\.weight)?")
_NAMED_KEY = re.compile(rf"(.+\.(?:{_OF_PEFT}))\.(?!weight$|bias$)([^.]+)(\.weight|\.bias)?")
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What torch.compile, DDP, FSDP and activation checkpointing put between the names of a model's modules."""
_COMPOUNDS = (
    "down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks", "middle_block",
    "transformer_blocks", "time_emb_proj", "time_embedding", "conv_in",
    "conv_out", "conv_shortcut", "proj_in", "proj_out", "linear_1", "linear_2", "to_q", "to_k", "to_v", "to_out",
    "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
)  # fmt: skip
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_BLOCK_ORDER = ("down_blocks", "up_blocks", "mid_block")
_CLIP_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")


def unwrap(name: str) -> str:
    """A tensor's or module's name without the modules that compile, DDP and FSDP wrap around others, wherever they stand."""
    kept = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    return kept.replace("__orig_mod_", "_")  # as kohya writes it


def split_adapter_name(key: str) -> tuple[str, str]:
    """A tensor's name without the adapter's, and that: PEFT keeps several in one model (``lora_A.default_0.weight``)."""
    match = _NAMED_KEY.fullmatch(key)
    return (match[1] + (match[3] or ""), match[2]) if match else (key, "")


def split_key(key: str) -> tuple[str, str] | None:
    """``(path, role)`` of a tensor's name, the role as in ``ROLES``; None if it belongs to no LoRA, DoRA or DeLoRA.

    Names of cloneofsimo/lora come back with ``unet:<number>`` as path.
    """
    match = _KEY.fullmatch(key)
    return (_to_path(match[1]), ROLES[match[2]]) if match else None


def to_kohya(path: str, xl: bool = False) -> str:
    """kohya's name of a matrix of the U-Net.

    Args:
        path: in diffusers' U-Net.
        xl: whether the U-Net is SDXL's.
    """
    return f"lora_unet_{(to_stability(path) if xl else path).replace('.', '_')}"


LAYERS_PER_BLOCK = 2
"""Of SDXL's U-Net: Stability's code counts the layers of all blocks through, and a sampler after those of each block."""


def to_stability(path: str) -> str:
    """The path of an attention's matrix in Stability's code of SDXL."""
    found = re.match(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.", path)
    if found is None:
        return path.replace("mid_block.attentions.0.", "middle_block.1.")
    down = found[1] == "down"
    number = (LAYERS_PER_BLOCK + 1) * int(found[2]) + int(found[3]) + down
    return f"{'input' if down else 'output'}_blocks.{number}.1.{path[found.end() :]}"


def from_stability(path: str) -> str:
    """The path in diffusers' U-Net of an attention's matrix in Stability's code of SDXL; others stay as they are."""
    path = path.replace("middle_block.1.", "mid_block.attentions.0.")
    found = re.match(r"(input|output)_blocks\.(\d+)\.1\.", path)
    if found is None:
        return path
    down = found[1] == "input"
    i, j = divmod(int(found[2]) - down, LAYERS_PER_BLOCK + 1)
    return f"{'down' if down else 'up'}_blocks.{i}.attentions.{j}.{path[found.end() :]}"


_PREFIXES = {"lora_te_": TEXT_ENCODER, "lora_te1_": TEXT_ENCODER, "lora_te2_": TEXT_ENCODER_2}


def _to_path(stem: str) -> str:
    for prefix in ("lora_unet_", "lycoris_"):  # kohya's, and LyCORIS' own where it wraps a U-Net alone
        if stem.startswith(prefix):
            return from_stability(_undo_underscores(stem.removeprefix(prefix)))
    for prefix, becomes in _PREFIXES.items():
        if stem.startswith(prefix):
            return becomes + _undo_underscores(stem.removeprefix(prefix))
    path = stem.removeprefix("base_model.model.").removeprefix("unet.")
    if ".processor." in path:  # diffusers before 0.22
        path = path.replace(".processor.", ".")
        path += ".0" if path.endswith("to_out") else ""
    for prefix in ("model.diffusion_model.", "diffusion_model."):  # Stability's code, ComfyUI
        if path.startswith(prefix):
            return from_stability(path.removeprefix(prefix))
    return TEXT_ENCODER + path if path.startswith("text_model.") else path


def _undo_underscores(name: str) -> str:
    dotted = name.replace("_", ".")
    for compound in _COMPOUNDS:
        dotted = re.sub(rf"(?<![^.]){re.escape(compound.replace('_', '.'))}(?![^.])", compound, dotted)
    return dotted


# Numbers instead of names.


def name_numbers(shapes: Sequence[tuple[int, int]], paths: Iterable[str]) -> list[str] | None:
    """The paths behind cloneofsimo/lora's ``unet:0, unet:1, ...``; None if the shapes do not fit.

    Its order is that of diffusers 0.11: down, up and mid blocks; in each transformer block attn1's four projections,
    the GEGLU's, attn2's four. Files may leave the GEGLU out.

    Args:
        shapes: ``(out, in)`` of the numbered matrices.
        paths: ``path:out:in`` of every linear layer of the model, in any order; see :func:`describe_sd15`.
    """
    known = {(parts := item.rsplit(":", 2))[0]: (int(parts[1]), int(parts[2])) for item in paths}
    ordered = sorted((path for path in known if _place(path)), key=lambda path: _place(path) or ())
    for wanted in (ordered, [path for path in ordered if ".attn" in path]):
        if [known[path] for path in wanted] == list(shapes):
            return wanted
    return None


def name_clip_number(number: int) -> str:
    """The path behind ``text_encoder:<number>``: k, v, q and output projection of one CLIP layer after the other."""
    return f"{TEXT_ENCODER}text_model.encoder.layers.{number // 4}.self_attn.{_CLIP_ORDER[number % 4]}"


def _place(path: str) -> tuple[int, ...] | None:
    """Where a matrix stands in cloneofsimo/lora's order; None for one that it never adapts."""
    match = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?attentions\.(\d+)\.transformer_blocks\.(\d+)\.(.+)", path
    )
    within = [f"attn1.{kind}" for kind in _ATTENTION] + ["ff.net.0.proj"] + [f"attn2.{kind}" for kind in _ATTENTION]
    if match is None or match[5] not in within:
        return None
    numbers = (int(match[2] or 0), int(match[3]), int(match[4]))
    return (_BLOCK_ORDER.index(match[1]), *numbers, within.index(match[5]))


def describe_sd15() -> list[str]:
    """``path:out:in`` of every matrix of Stable Diffusion 1.5's U-Net that cloneofsimo/lora adapts: 144."""
    blocks = [(f"down_blocks.{i}.attentions.{j}", 320 * 2**i) for i in range(3) for j in range(2)]
    blocks += [(f"up_blocks.{i}.attentions.{j}", 320 * 2 ** (3 - i)) for i in range(1, 4) for j in range(3)]
    rows = []
    for block, width in [*blocks, ("mid_block.attentions.0", 1280)]:
        stem = f"{block}.transformer_blocks.0"
        rows += [f"{stem}.attn1.{kind}:{width}:{width}" for kind in _ATTENTION]
        rows.append(f"{stem}.ff.net.0.proj:{8 * width}:{width}")
        widths = {"to_k": 768, "to_v": 768}
        rows += [f"{stem}.attn2.{kind}:{width}:{widths.get(kind, width)}" for kind in _ATTENTION]
    return rows
