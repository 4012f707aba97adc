"""Recognise by tensor names which model or method an adapter belongs to that Plateau does not read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from adapters.layer_names import TEXT_ENCODERS

UNET = (
    "down_blocks.", "up_blocks.", "mid_block.", "conv_in", "conv_out", "time_embedding.", "add_embedding.",
    "class_embedding.",
)  # fmt: skip
"""What the paths of a U-Net's matrices begin with."""

_MODELS = (
    ("Flux", r"single_transformer_blocks|double_blocks|(^|_)single_blocks"),
    ("Stable Diffusion 3", r"joint_blocks|lora_te3|^text_encoder_3"),
    ("Stable Cascade", r"lora_prior_"),
    ("a diffusion transformer", r"^(lora_)?transformer[._]|^(transformer_)?blocks\.\d|^lora_unet_(transformer_)?blocks_"),
    ("a diffusion transformer", r"^diffusion_model\.(?!input_|middle_|output_|down_|mid_|up_)"),
    ("a language model", r"(^|[._])model[._](language_model[._])?layers[._]\d|(^|\.)language_model\.|gpt_neox|(^|\.)h\.\d+\."),
    ("a language model", r"(^|\.)decoder\.layers?\.\d|(^|\.)layers\.\d+\.(self_attn|attention|mlp|feed_forward)"),
    ("an encoder of text such as BERT or T5", r"(^|\.)encoder\.(layer|block)\.\d"),
    ("a vision transformer", r"(^|\.)vision_model\.|(^|\.)visual\."),
)  # fmt: skip
_METHODS = (
    ("LyCORIS' LoHa", r"\.hada_"), ("LyCORIS' LoKr", r"\.lokr_"), ("LyCORIS' OFT or BOFT", r"\.oft_(blocks|diag)|\.rescale$"),
    ("LyCORIS' GLoRA", r"\.[ab][12]\.weight$"), ("LyCORIS' Tucker form of LoRA", r"\.lora_mid\."),
    ("LyCORIS' whole weights", r"\.diff(_b)?$|\.[wb]_norm$"), ("LyCORIS' (IA)^3", r"\.on_input$"),
    ("Custom Diffusion", r"custom_diffusion"), ("an IP-Adapter", r"^(image_proj|ip_adapter)\."),
    ("an embedding that OneTrainer adds", r"^bundle_emb\."), ("PEFT's LoRA with biases of its own", r"\.lora_B\.bias$"),
    ("PEFT's LoRA of embeddings", r"\.lora_embedding_"), ("PEFT's KaSA", r"\.lora_diag"),
)  # fmt: skip


def name_model(paths: Iterable[str]) -> tuple[str, str] | None:
    """The model that an adapter looks like, where no U-Net of Stable Diffusion has such names, and the name that says so.

    Args:
        paths: names of tensors or matrices, without what wrappers and PEFT put before them.
    """
    kept = [path for path in paths if "text_model" not in path]  # CLIP's layers, Stable Diffusion's too
    return next(((model, path) for model, pattern in _MODELS for path in kept if re.search(pattern, path)), None)


def name_method(key: str) -> str:
    """The method or the kind of tensor that a name belongs to, as far as it is known; "" otherwise."""
    if re.search(r"(?<!lora_[AB])\.bias$", key):
        return "a bias that was trained too"
    return next((method for method, pattern in _METHODS if re.search(pattern, key)), "")


def is_of_stable_diffusion(path: str) -> bool:
    """Whether a U-Net or text encoder of Stable Diffusion may have a matrix of this name."""
    return path.startswith((*UNET, *TEXT_ENCODERS))
