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


def reference_ether(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """ETHER (2405.20271), Equations 1 and 2, on the input side or on both."""
    return reference_multiplied(w0, {side: reference_reflections(p[f"u_{side}"]) for side in sides(p)}, options)


def reference_etherplus(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """ETHER+ (2405.20271), Equation 3, on the input side or on both."""
    blocks = {side: reference_relaxed_reflections(p[f"u_{side}"], p[f"v_{side}"]) for side in sides(p)}
    return reference_multiplied(w0, blocks, options)


def sides(p: State) -> list[str]:
    """The sides that have vectors."""
    return [side for side in ("in", "out") if f"u_{side}" in p]


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


def reference_nblora(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """NB-LoRA (2501.19050): W0 + 2 B S A, A^T the first rows of Cayley([A~^T; B~]), B the others."""
    frame, n = reference_frame(p["A"], p["B"]), w0.shape[1]
    return w0 + 2 * frame[n:] @ torch.diag(reference_strengths(w0, p, rank, options)) @ frame[:n].T


def reference_frame(a: Tensor, b: Tensor) -> Tensor:
    """Cayley of a tall [X; Y]: the first r columns of (I - K)(I + K)^-1 with the skew K = [[X - X^T, -Y^T], [Y, 0]]."""
    m = torch.cat([a.T, b])
    r, (x, y) = m.shape[1], m.split([m.shape[1], m.shape[0] - m.shape[1]])
    k = torch.cat([torch.cat([x - x.T, -y.T], 1), torch.cat([y, y.new_zeros(len(y), len(y))], 1)])
    identity = torch.eye(len(k), dtype=k.dtype)
    return (identity - k) @ torch.linalg.inv(identity + k)[:, :r]


def reference_strengths(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """s_j = lambda_j ||W0||_F / sqrt(in r); a learned lambda_j is put back between 0 and its start, with no gradient for that."""
    lam = p["lam_start"].expand(rank)
    if options["strength"] == "learned":
        put_back = torch.stack([min(max(value, value * 0), p["lam_start"]) for value in p["lam"].detach()])
        lam = p["lam"] - p["lam"].detach() + put_back
    return lam * reference_norm(w0) / (w0.shape[1] * rank) ** 0.5


def reference_singlora(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """SingLoRA (2507.05566), Equation 8 and Section 4.4: W0 + (alpha / r) u(t) A* A^T, or its transpose where W0 is tall."""
    a, narrow = p["A"], p["A"][: min(w0.shape)]
    change = sum_of_outer(narrow.T, a.T)
    return w0 + reference_ramp(p, rank, options) * (change if w0.shape[0] <= w0.shape[1] else change.T)


def reference_ramp(p: State, rank: int, options: Options) -> Tensor:
    """(alpha / r) min(t / T, 1); 0 before the first step, which may be what settles T."""
    alpha = rank if options["alpha"] == "r" else options["alpha"]
    if p["t"] == 0:
        return number(0.0)
    return alpha / rank * torch.minimum(p["t"] / p["ramp"], number(1.0))


def reference_full(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """Full finetuning: the weight itself."""
    return p["W"]


def reference_reflections(u: Tensor) -> list[Tensor]:
    """H_i = I - 2 u_i u_i^T / ||u_i||^2."""
    identity = torch.eye(u.shape[1], dtype=u.dtype)
    return [identity - 2 * torch.outer(a, a) / (a @ a) for a in u]


def reference_relaxed_reflections(u: Tensor, v: Tensor) -> list[Tensor]:
    """H_i = I - u_i u_i^T / ||u_i||^2 + v_i v_i^T / ||v_i||^2."""
    identity = torch.eye(u.shape[1], dtype=u.dtype)
    return [identity - torch.outer(a, a) / (a @ a) + torch.outer(b, b) / (b @ b) for a, b in zip(u, v, strict=True)]


def reference_multiplied(w0: Tensor, blocks: Mapping[str, list[Tensor]], options: Options) -> Tensor:
    """diag(H'_1, ...) W0 diag(H_1, ...); ``released``: H_i on every chunk of the i-th n-th of the rows, chunk by chunk."""
    inner, n = blocks["in"], len(blocks["in"])
    if options["layout"] == "released":
        height = w0.shape[0] // n
        rows = [w0[i * height : (i + 1) * height] for i in range(n)]
        w = torch.cat([torch.cat([chunk @ h for chunk in part.chunk(n, 1)], 1) for part, h in zip(rows, inner)])
    else:
        w = w0 @ torch.block_diag(*inner)
    return torch.block_diag(*blocks["out"]) @ w if "out" in blocks else w


def reference_naive(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """Naive (ETHER paper, 2405.20271, Section 4.2): W0 diag(I + N_1, ...)^T."""
    return w0 @ torch.block_diag(*(torch.eye(n.shape[0], dtype=n.dtype) + n for n in p["N"])).T


def reference_oft(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """OFT (2306.07280), Equation 5 and Section 3.4: W0 diag(Q_1, ...)^T, in the released code's orientation."""
    return w0 @ torch.block_diag(*reference_rotations(p["R"], options)).T


def reference_coft(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """COFT (2306.07280), Section 3.3: every S is written over by its projection, with no gradient through that."""
    return w0 @ torch.block_diag(*reference_rotations(reference_projected(p["R"], options), options)).T


def reference_rotations(entries: Tensor, options: Options) -> list[Tensor]:
    """(I - S)(I + S)^-1 of each block, or PEFT's series of five terms."""
    rotations = []
    for s in map(reference_skew, entries):
        identity = torch.eye(s.shape[0], dtype=s.dtype)
        if options.get("cayley") == "series":
            rotations.append(identity + 2 * s + 2 * s @ s + 2 * s @ s @ s + s @ s @ s @ s)
        else:
            rotations.append((identity - s) @ torch.linalg.inv(identity + s))
    return rotations


def reference_skew(entries: Tensor) -> Tensor:
    """S with these entries above its diagonal, row by row."""
    width = round((1 + (1 + 8 * len(entries)) ** 0.5) / 2)
    rest, rows = list(entries), []
    for i in range(width):
        rows.append(torch.stack([rest.pop(0) if j > i else entries.new_zeros(()) for j in range(width)]))
    return torch.stack(rows) - torch.stack(rows).T


def reference_projected(entries: Tensor, options: Options) -> Tensor:
    """R if ||S|| <= radius, else radius R / ||S||: the released code's ``project_batch``, block by block."""
    radius, projected = reference_radius(entries, options), []
    for row in entries:
        norm = reference_norm(reference_skew(row.detach()))
        projected.append(row if norm <= radius else row + (radius * row / norm - row).detach())
    return torch.stack(projected)


def reference_radius(entries: Tensor, options: Options) -> float:
    """eps width^2 / sqrt(n) in the released code, eps / sqrt(n) in PEFT."""
    width = reference_skew(entries[0]).shape[0]
    return options["eps"] * (width**2 if options["radius"] == "released" else 1) / len(entries) ** 0.5


def reference_normalized(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """DeLoRA paper (2503.18225), Equation 7 and Table 1: DeLoRA with 1 in place of every norm of W0."""
    return reference_delora(torch.ones_like(w0) / w0.shape[0] ** 0.5, p, rank, {**options, "norm": "columns"}) + (
        w0 - torch.ones_like(w0) / w0.shape[0] ** 0.5
    )


def reference_relaxed(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """DeLoRA paper, after Equation 14: W0 H^T with H = I - (lambda / r) (B Xi A - D Phi C)."""
    change = unit_outer(p["b"], p["a"]) - unit_outer(p["d"], p["c"])
    return w0 @ (torch.eye(w0.shape[1], dtype=w0.dtype) - p["lam"] / rank * change).T


def reference_highrank(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """DeLoRA paper, Equation 14: H = I - (lambda / r) U Sigma U^T + (lambda / r) V Theta V^T."""
    change = unit_outer(p["u"], p["u"]) - unit_outer(p["v"], p["v"])
    return w0 @ (torch.eye(w0.shape[1], dtype=w0.dtype) - p["lam"] / rank * change).T


def reference_boundary(w0: Tensor, p: State, rank: int, options: Options) -> Tensor:
    """DeLoRA paper, Equation 10, or with ``whole`` the row of Table 1: lambda in place of lambda / 2."""
    return reference_highrank(w0, p, 2 if options["scale"] == "half" else 1, options)


def unit_outer(columns: Tensor, rows: Tensor) -> Tensor:
    """sum_i columns_i rows_i^T / (||columns_i|| ||rows_i||)."""
    return sum_of_outer([x / reference_norm(x) for x in columns], [x / reference_norm(x) for x in rows])


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
    "ether": reference_ether,
    "oft": reference_oft,
    "coft": reference_coft,
    "naive": reference_naive,
    "vera": reference_vera,
    "dvora": reference_dvora,
    "hra": reference_hra,
    "nblora": reference_nblora,
    "singlora": reference_singlora,
    "full": reference_full,
    "ablation-normalized": reference_normalized,
    "ablation-relaxed": reference_relaxed,
    "ablation-highrank": reference_highrank,
    "ablation-boundary": reference_boundary,
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


def gauges_ether(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H - I||_F = 2 sqrt(n) on either side."""
    moved = [reference_moved(reference_reflections(p[f"u_{side}"])) for side in sides(p)]
    return {"transform_distance": torch.stack(moved).max(), "bound": 2 * number(options["blocks"]).sqrt()}


def gauges_etherplus(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H - I||_F of the side that has moved more, at most sqrt(2 n)."""
    moved = [reference_moved(reference_relaxed_reflections(p[f"u_{side}"], p[f"v_{side}"])) for side in sides(p)]
    return {"transform_distance": torch.stack(moved).max(), "bound": (2 * number(options["blocks"])).sqrt()}


def gauges_normalized(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """DeLoRA's, with S = 1 but where zero_b's clamp makes it less."""
    ones = torch.ones_like(w0) / w0.shape[0] ** 0.5
    return gauges_delora(ones, p, rank, {**options, "norm": "columns"})


def gauges_relaxed(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H - I||_F, at most |lambda|."""
    change = unit_outer(p["b"], p["a"]) - unit_outer(p["d"], p["c"])
    return {"transform_distance": (p["lam"] / rank * change).norm(), "lambda": p["lam"], "bound": p["lam"].abs()}


def gauges_highrank(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H - I||_F, at most |lambda| / sqrt(2)."""
    change = unit_outer(p["u"], p["u"]) - unit_outer(p["v"], p["v"])
    bound = p["lam"].abs() / 2**0.5
    return {"transform_distance": (p["lam"] / rank * change).norm(), "lambda": p["lam"], "bound": bound}


def gauges_boundary(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H - I||_F, at most |lambda| / sqrt(2), or twice that."""
    if options["scale"] == "half":
        return gauges_highrank(w0, p, 2, options)
    return gauges_highrank(w0, p, 1, options) | {"bound": p["lam"].abs() * 2**0.5}


def gauges_naive(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||Q - I||_F and ||Q^T Q - I||_F over all blocks."""
    return gauges_blocks([torch.eye(n.shape[0], dtype=n.dtype) + n for n in p["N"]])


def gauges_oft(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """A rotation moves no row by more than twice its length; the series has no bound."""
    bound = {} if options["cayley"] == "series" else {"bound": 2 * w0.norm()}
    return gauges_blocks(reference_rotations(p["R"], options)) | bound


def gauges_coft(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||Q - I||_F with radius^2 / 2 shared evenly by the planes of every block."""
    rotations = reference_rotations(reference_projected(p["R"], options), options)
    planes = rotations[0].shape[0] // 2
    share = reference_radius(p["R"], options) ** 2 / 2 / planes
    bound = number(len(rotations) * planes * 2 * 4 * share / (1 + share)).sqrt()
    return gauges_blocks(rotations) | {"bound": bound}


def gauges_blocks(blocks: list[Tensor]) -> dict[str, Tensor]:
    """||Q - I||_F and ||Q^T Q - I||_F."""
    return {"transform_distance": reference_moved(blocks), "orthogonality": reference_moved([q.T @ q for q in blocks])}


def reference_moved(blocks: list[Tensor]) -> Tensor:
    """||diag(H_1, ..., H_n) - I||_F."""
    h = torch.block_diag(*blocks)
    return (h - torch.eye(h.shape[0], dtype=h.dtype)).norm()


def number(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(value, dtype=torch.float64)


def gauges_hra(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """||H_1 ... H_r - I||_F, at most 2 sqrt(r)."""
    identity = torch.eye(w0.shape[1], dtype=w0.dtype)
    moved = (reference_hra(identity, p, rank, options) - identity).norm()
    return {"transform_distance": moved, "bound": 2 * torch.tensor(rank, dtype=w0.dtype).sqrt()}


def gauges_nblora(w0: Tensor, p: State, rank: int, options: Options) -> dict[str, Tensor]:
    """The root mean square of the directions' lambdas, ||S||_F, and tr(A A^T) / r."""
    strengths = reference_strengths(w0, p, rank, options)
    a = reference_frame(p["A"], p["B"])[: w0.shape[1]]
    unit = reference_norm(w0) / w0.shape[1] ** 0.5
    return {
        "lambda": reference_norm(strengths) / unit,
        "bound": reference_norm(strengths),
        "input_share": (a * a).sum() / rank,
    }


GAUGES: dict[str, Callable[[Tensor, State, int, Options], dict[str, Tensor]]] = {
    "lora": lambda w0, p, rank, options: {},
    "dora": gauges_dora,
    "dora-fixed": gauges_fixed_dora,
    "delora": gauges_delora,
    "etherplus": gauges_etherplus,
    "ether": gauges_ether,
    "oft": gauges_oft,
    "coft": gauges_coft,
    "naive": gauges_naive,
    "vera": lambda w0, p, rank, options: {},
    "dvora": gauges_dora,
    "hra": gauges_hra,
    "nblora": gauges_nblora,
    "singlora": lambda w0, p, rank, options: {"drift": reference_ramp(p, rank, options) * p["start_norm"]},
    "full": lambda w0, p, rank, options: {},
    "ablation-normalized": gauges_normalized,
    "ablation-relaxed": gauges_relaxed,
    "ablation-highrank": gauges_highrank,
    "ablation-boundary": gauges_boundary,
}


def reference_num_parameters(name: str, num_out: int, num_in: int, rank: int, options: Options) -> int:
    """Trainable values of one matrix."""
    low_rank = rank * (num_in + num_out)
    two_sided = options.get("sides") == "two"
    width = num_in // options.get("blocks", 1)
    magnitudes = num_in if options.get("axis") == "columns" else num_out
    return {
        "lora": low_rank,
        "dora": low_rank + magnitudes,
        "dora-fixed": low_rank,
        "delora": low_rank + 1,
        "etherplus": 2 * num_in + (2 * num_out if two_sided else 0),
        "ether": num_in + (num_out if two_sided else 0),
        "oft": num_in * (width - 1) // 2,
        "coft": num_in * (width - 1) // 2,
        "naive": num_in * width,
        "vera": rank + num_out,
        "dvora": rank + num_out + magnitudes,
        "hra": rank * num_in,
        "nblora": low_rank + (rank if options.get("strength") == "learned" else 0),
        "singlora": rank * max(num_out, num_in),
        "full": num_in * num_out,
        "ablation-normalized": low_rank + 1,
        "ablation-relaxed": 2 * rank * num_in + 1,
        "ablation-highrank": rank * num_in + 1,
        "ablation-boundary": 2 * num_in + 1,
    }[name]
