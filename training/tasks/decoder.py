"""Load a pretrained decoder (Llama, Mistral, Qwen) as a frozen model that continues prompts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adapters.errors import BadInput
from training.tasks.pretrained import Family

MATRICES = {
    "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value", "self_attn.o_proj": "out",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
ATTENTION = ("query", "key", "value", "out")
FAMILY = Family(
    what="decoder",
    kinds=("llama", "mistral", "qwen2", "qwen3"),
    counts=(
        "model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_theta",
        "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window", "tie_word_embeddings",
        "max_position_embeddings",
    ),
    prefixes=("model",),
    embeddings="embed_tokens",
    layer="layers",
    matrices=MATRICES,
    attention=ATTENTION,
    sets={"qv": ("query", "value"), "attention": ATTENTION, "all": tuple(MATRICES.values())},
    example="layers.0.self_attn.q_proj",
)  # fmt: skip


@dataclass
class Decoder:
    """A frozen decoder on one device.

    Attributes:
        model: transformers' object without its head, float32, in evaluation mode.
        head: scores all tokens to come next; the embeddings' own matrix where they are tied.
        tokenizer: transformers' object.
        max_tokens: as many as the model has positions for.
        device: where the model lies.
    """

    model: Any
    head: Any
    tokenizer: Any
    max_tokens: int
    device: torch.device

    def exchange(self, prompt: str, answer: str, limit: int) -> tuple[list[int], int]:
        """Token ids of a prompt and its answer with the token that ends texts, and how many of them are the answer's.

        What is too long loses the beginning of its prompt, and the end of an answer that is too long by itself. An answer that
        ends with the token itself gets no second one.
        """
        most = min(limit, self.max_tokens)
        end = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
        end = [*end, *([] if end[-1:] == [self.end_id] else [self.end_id])][: most - 1]
        return [*self.prompt(prompt, most - len(end)), *end], len(end)

    def prompt(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids of a prompt, with what the tokenizer puts before a text and without what it puts behind one.

        What is longer than the limit loses its beginning, but not what the tokenizer puts before it, if anything else fits too.
        """
        before, behind = self._added
        ids = list(self.tokenizer(text)["input_ids"])
        ids = ids[: len(ids) - behind]
        if limit is None or len(ids) <= limit:
            return ids
        kept = ids[:before] if limit > before else []
        return [*kept, *ids[len(ids) - limit + len(kept) :]]

    @functools.cached_property
    def _added(self) -> tuple[int, int]:
        """How many tokens the tokenizer puts before a text, and how many behind it."""
        whole, plain = (self.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
        for before in range(len(whole) - len(plain) + 1):
            if whole[before : before + len(plain)] == plain:
                return before, len(whole) - before - len(plain)
        return 0, 0

    @property
    def end_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    def hidden(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n t d"]:
        """The last layer's outputs; rows are filled up at their left, and positions count from their first token."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
        return out.last_hidden_state

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Scores of all tokens to come next, in float32."""
        return self.head(hidden).float()


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Token ids as one tensor as wide as the longest row, filled up at the left, and its mask: 1 for tokens."""
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids.view(len(rows), width), mask.view(len(rows), width)


def load(folder: Path, device: torch.device) -> Decoder:
    """Load a decoder as float32 in evaluation mode, frozen; tied embeddings stay tied.

    Args:
        folder: as from `FAMILY.locate`.
        device: where it goes.

    Raises:
        BadInput: it cannot be loaded, its weights are not whole, or its tokenizer ends no text.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise BadInput(f"cannot load {folder}: {(str(error).splitlines() or ['?'])[0]}") from None
    if missing := sorted(told["missing_keys"]):
        raise BadInput(f"the weights in {folder} have no {missing[0]}: they are not whole, or another model's")
    if tokenizer.eos_token_id is None:
        raise BadInput(f"the tokenizer in {folder} has no token that ends a text (eos_token)")
    most = min(int(model.config.max_position_embeddings), tokenizer.model_max_length)
    model = model.to(device).eval().requires_grad_(False)
    return Decoder(model.model, model.lm_head, tokenizer, most, device)
