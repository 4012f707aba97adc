"""Literal oracles: each method's weight written down from its paper, one direction or row at a time, in float64.

Nothing here uses the adapters' code. A state ``p`` holds one replica's tensors of one matrix, by name, in float64; ``w0``
is ``[out, in]``. Gradients flow through, so that the oracles are oracles of the backward pass too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Options = Mapping[str, Any]


def reference_lora(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """LoRA (2106.09685), Equation 3 and Section 4.1: W0 + (alpha / r) sum_i b_i a_i^T."""
    scale = reference_scale(rank, options)
    return w0 + scale * sum_of_outer(p["B"].T, p["A"])


def reference_dora(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """DoRA (2402.09353), Equation 5, with LoRA's direction."""
    return reference_decomposed(reference_lora(w0, p, rank, options), p["magnitude"], options)


def reference_decomposed(v: Tensor, magnitude: Tensor, options: Options) -> Tensor:
    """m_j V_j / ||V_j|| for every output row, or every input column, V_j; Section 4.3 of DoRA holds the norm constant."""
    vectors = []
    for m, vector in zip(magnitude, v if options["axis"] == "rows" else v.T, strict=True):
        norm = (vector @ vector).sqrt()
        vectors.append(m * vector / (norm.detach() if options["norm_grad"] == "detached" else norm))
    return torch.stack(vectors, dim=0 if options["axis"] == "rows" else 1)


def reference_delora(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """DeLoRA (2503.18225), Equations 8 and 9; ``live`` and ``zero_b`` as in the authors' code and in PEFT."""
    if options["start"] == "zero_b":
        return w0 + reference_delora_update(w0, p["A"], p["B"], p["lam"], rank, options)
    lam_start = p["lam_start"] if options["start"] == "eq9" else p["lam"]
    start = reference_delora_update(w0, p["A_start"], p["B_start"], lam_start, rank, options)
    return w0 + reference_delora_update(w0, p["A"], p["B"], p["lam"], rank, options) - start


def reference_delora_update(w0: Tensor, a: Tensor, b: Tensor, lam: Tensor, rank: int, options: Options) -> Tensor:
    """(lambda / r) sum_i b_i a_i^T / (||b_i|| ||a_i||), times ||W0||: by column, or Frobenius."""
    norms = [reference_norm(w0[:, j]) for j in range(w0.shape[1])]
    w = torch.stack(norms if options["norm"] == "columns" else [reference_norm(w0)] * w0.shape[1])
    floor = 1e-4 if options["start"] == "zero_b" else 0.0
    rows_a = [row / reference_norm(row).clamp_min(floor) for row in a]
    columns_b = [column / reference_norm(column).clamp_min(floor) for column in b.T]
    return lam / rank * sum_of_outer(columns_b, rows_a) @ torch.diag(w)


def reference_etherplus(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """ETHER+ (2405.20271), Equation 3, on the input side or on both."""
    w = w0 @ reference_transform(p["u_in"], p["v_in"])
    return reference_transform(p["u_out"], p["v_out"]) @ w if options["sides"] == "two" else w


def reference_vera(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """VeRA (2310.11454), Equation 2: W0 + diag(b) B diag(d) A, with the frozen A and B among the given tensors."""
    return w0 + torch.diag(p["b"]) @ sum_of_outer(p["B"].T, [d * row for d, row in zip(p["d"], p["A"], strict=True)])


def reference_dvora(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """DVoRA (2402.09353, Section 5.2): DoRA's Equation 5 with VeRA's directional update."""
    return reference_decomposed(reference_vera(w0, p, rank, options), p["magnitude"], options)


def reference_hra(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """HRA (2405.17484), Equation 2: W0 H_1 ... H_r with H_i = I - 2 u_i u_i^T / ||u_i||^2, u_i the columns of U."""
    w = w0
    for u in p["U"].T:
        w = w @ (torch.eye(len(u), dtype=u.dtype) - 2 * torch.outer(u, u) / (u @ u))
    return w


def reference_full(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """Full finetuning: the weight itself."""
    return p["W"]


def reference_transform(u: Tensor, v: Tensor) -> Tensor:
    """diag(H_1, ..., H_n) with H_i = I - u_i u_i^T / ||u_i||^2 + v_i v_i^T / ||v_i||^2."""
    identity = torch.eye(u.shape[1], dtype=u.dtype)
    blocks = [identity - torch.outer(a, a) / (a @ a) + torch.outer(b, b) / (b @ b) for a, b in zip(u, v, strict=True)]
    return torch.block_diag(*blocks)


def reference_scale(rank: int, options: Options) -> float:
    """alpha / r, or alpha / sqrt(r)."""
    alpha = 2.0 * rank if options["alpha"] == "2r" else options["alpha"]
    return alpha / rank if options["divisor"] == "r" else alpha / rank**0.5


def reference_norm(values: Tensor) -> Tensor:
    """Euclidean norm of all entries."""
    return (values**2).sum().sqrt()


def sum_of_outer(columns: Any, rows: Any) -> Tensor:
    """sum_i columns_i rows_i^T."""
    return torch.stack([torch.outer(column, row) for column, row in zip(columns, rows, strict=True)]).sum(0)


REFERENCES: dict[str, Callable[[Tensor, State, int, Options], Tensor]] = {
    "lora": reference_lora,
    "dora": reference_dora,
    "dora-fixed": reference_dora,
    "delora": reference_delora,
    "etherplus": reference_etherplus,
    "vera": reference_vera,
    "dvora": reference_dvora,
    "hra": reference_hra,
    "full": reference_full,
}
"""The oracle of every method in ``adapters.METHODS``."""


# What is read off the weights besides their distance: the dials of each method, and the bound of its distance.


def reference_gauges(name: str, w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """Every gauge that a method has, without those that follow from others (saturation)."""
    return GAUGES[name](w0, p, rank, options)


def gauges_dora(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """Mean |m - ||w||| over the rows, or the columns."""
    vectors = w0 if options["axis"] == "rows" else w0.T
    return {"magnitude_drift": torch.stack([(m - w.norm()).abs() for m, w in zip(p["magnitude"], vectors)]).mean()}


def gauges_fixed_dora(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """No row, and no column, can move by more than twice its length."""
    return gauges_dora(w0, p, rank, options) | {"bound": 2 * w0.norm()}


def gauges_delora(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """|lambda| S with S = mean_i ||a_i * w|| / ||a_i||, for the present factors and, where there are any, the frozen."""
    w = w0.norm(dim=0) if options["norm"] == "columns" else w0.norm().expand(w0.shape[1])
    floor = 1e-4 if options["start"] == "zero_b" else 0.0

    def mean_norm(a: Tensor) -> Tensor:
        return torch.stack([(row * w).norm() / row.norm().clamp_min(floor) for row in a]).mean()

    bound = p["lam"].abs() * mean_norm(p["A"])
    if options["start"] != "zero_b":
        lam_start = p["lam_start"] if options["start"] == "eq9" else p["lam"]
        bound = bound + lam_start.abs() * mean_norm(p["A_start"])
    return {"lambda": p["lam"], "bound": bound}


def gauges_etherplus(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H - I||_F of the side that has moved more, at most sqrt(2 n)."""
    moved = []
    for side in ("in", "out") if options["sides"] == "two" else ("in",):
        h = reference_transform(p[f"u_{side}"], p[f"v_{side}"])
        moved.append((h - torch.eye(h.shape[0], dtype=h.dtype)).norm())
    num_blocks = torch.tensor(options["blocks"], dtype=w0.dtype)
    return {"transform_distance": torch.stack(moved).max(), "bound": (2 * num_blocks).sqrt()}


def gauges_hra(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H_1 ... H_r - I||_F, at most 2 sqrt(r)."""
    identity = torch.eye(w0.shape[1], dtype=w0.dtype)
    moved = (reference_hra(identity, p, rank, options) - identity).norm()
    return {"transform_distance": moved, "bound": 2 * torch.tensor(rank, dtype=w0.dtype).sqrt()}


GAUGES: dict[str, Callable[[Tensor, State, int, Options], dict[str, Tensor]]] = {
    "lora": lambda w0, p, rank, options: {},
    "dora": gauges_dora,
    "dora-fixed": gauges_fixed_dora,
    "delora": gauges_delora,
    "etherplus": gauges_etherplus,
    "vera": lambda w0, p, rank, options: {},
    "dvora": gauges_dora,
    "hra": gauges_hra,
    "full": lambda w0, p, rank, options: {},
}


def reference_num_parameters(name: str, num_out: int, num_in: int, rank: int, options: Options) -> int:
    """Trainable values of one matrix."""
    low_rank = rank * (num_in + num_out)
    two_sided = options.get("sides") == "two"
    magnitudes = num_in if options.get("axis") == "columns" else num_out
    return {
        "lora": low_rank,
        "dora": low_rank + magnitudes,
        "dora-fixed": low_rank,
        "delora": low_rank + 1,
        "etherplus": 2 * num_in + (2 * num_out if two_sided else 0),
        "vera": rank + num_out,
        "dvora": rank + num_out + magnitudes,
        "hra": rank * num_in,
        "full": num_in * num_out,
    }[name]
