"""Test every promise of the adapter contract on one method; the contract tests call the same functions.

    python -m adapters.check path/to/mymethod.py
    python -m adapters.check delora:start=live

The definition is ``weight()``: forward, gradients, distance and merge are held to it, on a model of 8 matrices of 3 shapes
with 3 replicas. Whether ``weight()`` is what a paper means, only its author and an oracle of its own can say.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from adapters import PEFT, MethodSpec, get_class, parse_method, peft_format
from adapters.ending import end_well
from adapters.errors import BadInput
from adapters.inject import attach
from adapters.pack import Attached
from adapters.toy import Model, make_model

SEEDS = (5, 6, 7)
RANK = 3
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
MOVES = (0.0, 1e-8, 1e-5, 1e-3, 0.1, 10.0)
STEPS = 300
"""Length of the training whose first step is counted where values have moved: SingLoRA is then a third up its ramp."""
Verdict = tuple[bool, str]


@dataclass(frozen=True)
class Finding:
    """Whether a method keeps a promise, and the numbers behind it."""

    promise: str
    holds: bool
    numbers: str


def check(spec: MethodSpec) -> list[Finding]:
    """Run every promise; one that raises is broken, and says how."""
    return [run_promise(name, spec) for name in PROMISES]


def run_promise(name: str, spec: MethodSpec) -> Finding:
    """Run one promise of :data:`PROMISES`."""
    try:
        return Finding(name, *PROMISES[name](spec))
    except Exception as error:
        return Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}"[:160])


# What the promises stand on.


def make_pack(
    spec: MethodSpec, seeds: Sequence[int] = SEEDS, dtype: torch.dtype = torch.float64, moved: float = 0.0
) -> tuple[Model, Attached]:
    """The model with a pack in it; a replica's noise, of standard deviation ``moved``, depends on its seed only."""
    model = make_model(dtype)
    boundary = [0.5 + seed / 10 for seed in seeds] if get_class(spec.name).uses_boundary else None
    attached = attach(model, spec, seeds=seeds, rank=suitable_rank(spec), boundary=boundary)
    for row, seed in enumerate(seeds):
        noise = torch.randn(attached.flat.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        attached.flat[row] += (moved * noise).to(attached.flat.dtype)
    if moved:
        attached.advance(STEPS)
    return model, attached


def suitable_rank(spec: MethodSpec, rank: int = RANK) -> int:
    """The next rank from this one on that the method can divide as it must."""
    multiple = get_class(spec.name).rank_multiple
    return -(-rank // multiple) * multiple


def make_inputs(seeds: Sequence[int] = SEEDS, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two pictures and contexts for each replica, which depend on its seed only."""
    shares: list[list[Tensor]] = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(100 + seed)
        shares.append([torch.randn(2, 4, size, generator=generator, dtype=torch.float64) for size in (12, 20)])
    x, context = (torch.cat(parts).to(dtype) for parts in zip(*shares))
    return x, context


def error_of(value: Tensor, expected: Tensor) -> float:
    """||value - expected|| / ||expected||, in double precision."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny))


def _worst(errors: dict[torch.dtype, float]) -> Verdict:
    text = ", ".join(f"{error:.1e} ({str(dtype).removeprefix('torch.')})" for dtype, error in errors.items())
    return all(error < TOLERANCES[dtype] for dtype, error in errors.items()), f"largest error {text}"


# The promises.


def starts_where_declared(spec: MethodSpec) -> Verdict:
    """The start is the base, unless the class says otherwise."""
    model, _ = make_pack(spec)
    error = error_of(model(*make_inputs()), make_model()(*make_inputs()))
    declared = get_class(spec.name).starts_at_base
    return (error < 1e-12) == declared, f"output differs by {error:.1e}, starts_at_base = {declared}"


def starts_from_the_seed(spec: MethodSpec) -> Verdict:
    """Same seed, same start: in whichever place of whichever pack, in every precision."""
    (_, one), (_, other) = make_pack(spec), make_pack(spec, SEEDS[::-1])
    (_, single), random = make_pack(spec, dtype=torch.float32), not torch.equal(one.flat[0], one.flat[1])
    holds = torch.equal(one.flat, other.flat.flip(0)) and error_of(single.flat, one.flat) < 1e-6
    return holds, "seeds differ" if random else "the same start for every seed"


def forward_is_weight(spec: MethodSpec) -> Verdict:
    """``forward(x)`` is x W^T + bias."""
    errors = {}
    for dtype in TOLERANCES:
        _, attached = make_pack(spec, dtype=dtype, moved=0.5)
        errors[dtype] = 0.0
        for adapter in attached.adapters.values():
            generator = torch.Generator().manual_seed(2)
            x = torch.randn(2 * len(SEEDS), 5, adapter.shape[1], dtype=dtype, generator=generator)
            weight = adapter.in_double().weight()
            expected = x.double().reshape(len(SEEDS), -1, x.shape[-1]) @ weight.mT
            if adapter.bias0 is not None:
                expected = expected + adapter.bias0.double()
            errors[dtype] = max(errors[dtype], error_of(adapter(x).reshape(expected.shape), expected))
    return _worst(errors)


def merge_is_forward(spec: MethodSpec) -> Verdict:
    """The base model with the merged weights computes what the adapted one does."""
    model, attached = make_pack(spec, moved=0.3)
    x, context = make_inputs()
    out, error = model(x, context).chunk(len(SEEDS)), 0.0
    for replica, rows in enumerate(torch.arange(len(x)).chunk(len(SEEDS))):
        merged = {f"{path}.weight": a.weight()[replica].detach() for path, a in attached.adapters.items()}
        error = max(error, error_of(functional_call(make_model(), merged, (x[rows], context[rows])), out[replica]))
        stored = attached.merged(replica)
        error = max([error, *(error_of(merged[f"{p}.weight"].float(), stored[p]) for p in stored)])
    return error < 1e-10, f"output differs by {error:.1e}"


def gradient_is_that_of_weight(spec: MethodSpec) -> Verdict:
    """Gradients of the forward are those through ``weight()``, and every trainable tensor gets one."""
    _, attached = make_pack(spec, moved=0.5)
    error, silent = 0.0, []
    for path in ("attn1.to_out.0", "attn2.to_k"):
        adapter = attached.adapters[path]
        x = torch.randn(3, 7, adapter.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        parameters = [adapter.get_parameter(name) for name in adapter.ROLES]
        bias = 0.0 if adapter.bias0 is None else adapter.bias0
        fast_out, slow_out = adapter(x), x @ adapter.weight().mT + bias
        # Not towards zero: a rotation of the outputs does not change their length.
        aim = torch.linspace(-1, 1, fast_out.shape[-1], dtype=torch.float64)
        fast = torch.autograd.grad((fast_out - aim).square().sum(), parameters, allow_unused=True)
        slow = torch.autograd.grad((slow_out - aim).square().sum(), parameters, allow_unused=True)
        for name, one, other in zip(adapter.ROLES, fast, slow, strict=True):
            if one is None or other is None or not one.any():
                silent.append(name)
            else:
                error = max(error, error_of(one, other))
    said = f"; no gradient: {', '.join(sorted(set(silent)))}" if silent else ""
    return error < 1e-10 and not silent, f"largest error {error:.1e}{said}"


def gradient_is_that_of_differences(spec: MethodSpec) -> Verdict:
    """gradcheck in double precision, where the forward is what is differentiated."""
    _, attached = make_pack(spec, moved=0.3)
    adapter = attached.adapters["attn1.to_out.0"]
    if not adapter.exact_gradient:
        return True, "declared not to be: part of the forward is a constant for the gradient"
    x = torch.randn(3, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    parameters = [adapter.get_parameter(name) for name in adapter.ROLES]
    torch.autograd.gradcheck(lambda x, *_: adapter(x), (x, *parameters), fast_mode=True)
    return True, "gradcheck passes"


def distance_is_that_of_weight(spec: MethodSpec) -> Verdict:
    """``distance()`` is ||weight() - W0||_F, to 1e-6 of the value plus 1e-7 ||W0||_F."""
    worst = 0.0
    for dtype in TOLERANCES:
        for moved in MOVES:
            _, attached = make_pack(spec, dtype=dtype, moved=moved)
            for adapter in attached.adapters.values():
                twin = adapter.in_double()
                expected = torch.linalg.vector_norm(twin.weight() - twin.weight0, dim=(-2, -1)).detach()
                allowed = 1e-6 * expected + 1e-7 * twin.weight0.norm()
                share = ((adapter.distance() - expected).abs() / allowed).max().item()
                worst = max(worst, math.inf if math.isnan(share) else share)
    return worst <= 1, f"largest error {worst:.1e} of what is allowed"


def stack_is_its_matrices(spec: MethodSpec) -> Verdict:
    """``[k, m, ...]`` tensors give what m times ``[k, ...]`` do: weights and readings."""
    _, attached = make_pack(spec, moved=0.3)
    error = 0.0
    for stack in attached.stacks:
        members = [attached.adapters[path] for path in stack.paths]
        whole = {"weight": stack.adapter.weight(), **stack.adapter.readings()}
        for name, value in whole.items():
            parts = [m.weight() if name == "weight" else m.readings()[name] for m in members]
            error = max(error, error_of(value, torch.stack(parts, 1)))
    return error < 1e-9, f"largest error {error:.1e}"


def replicas_do_not_leak(spec: MethodSpec) -> Verdict:
    """K replicas together are K runs alone: outputs and gradients."""
    errors = {}
    for dtype in TOLERANCES:
        model, attached = make_pack(spec, dtype=dtype, moved=0.3)
        out = model(*make_inputs(dtype=dtype))
        out.square().sum().backward()
        errors[dtype] = 0.0
        for replica, seed in enumerate(SEEDS):
            lone_model, lone = make_pack(spec, [seed], dtype, moved=0.3)
            lone_out = lone_model(*make_inputs([seed], dtype))
            lone_out.square().sum().backward()
            pairs = ((out.chunk(len(SEEDS))[replica], lone_out), (attached.grad[replica], lone.grad[0]))
            errors[dtype] = max([errors[dtype], *(error_of(*pair) for pair in pairs)])
    return _worst(errors)


def nan_stays_in_its_replica(spec: MethodSpec) -> Verdict:
    """A replica of NaNs leaves the others' outputs, gradients and distances as they are, to the bit."""
    model, attached = make_pack(spec, dtype=torch.float32, moved=0.3)
    seen = []
    for poison in (False, True):
        if poison:
            attached.flat[1] = torch.nan
        attached.zero_grad()
        out = model(*make_inputs(dtype=torch.float32))
        out.square().sum().backward()
        distances = torch.cat([stack.adapter.distance() for stack in attached.stacks], 1)
        kept = [out.chunk(3)[0], out.chunk(3)[2], attached.grad[[0, 2]].clone(), distances[[0, 2]]]
        seen.append([part.detach() for part in kept])
    num_changed = sum(int((one != other).sum()) for one, other in zip(*seen))
    return num_changed == 0, f"{num_changed} values of the other replicas changed"


def only_the_adapter_moves(spec: MethodSpec) -> Verdict:
    """A step of training moves every trainable tensor, and neither the base nor the method's frozen tensors."""
    model, attached = make_pack(spec, moved=0.1)
    before = attached.state(0)
    model(*make_inputs()).square().sum().backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    roles = next(iter(attached.adapters.values())).ROLES
    still = [k for k, v in attached.state(0).items() if torch.equal(v, before[k]) == (k.rpartition(".")[2] in roles)]
    attached.detach()
    untouched = make_model().state_dict()
    base = [key for key, value in model.state_dict().items() if not torch.equal(value, untouched[key])]
    return not still and not base, f"wrong: {', '.join([*still, *base][:4]) or 'none'}"


def detach_restores(spec: MethodSpec) -> Verdict:
    """After ``detach`` the model is the one before, to the bit."""
    model, attached = make_pack(spec, moved=0.3)
    attached.detach()
    same = torch.equal(model(*make_inputs()), make_model()(*make_inputs()))
    free = all(parameter.requires_grad for parameter in model.parameters())
    return same and free and repr(model) == repr(make_model()), f"output {'equal' if same else 'differs'}"


def state_moves_a_replica(spec: MethodSpec) -> Verdict:
    """A saved folder holds all of a replica: in another pack, under another seed, it computes the same."""
    model, attached = make_pack(spec, dtype=torch.float32, moved=0.3)
    other_model, other = make_pack(spec, [1, 2], torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        peft_format.save(Path(folder) / "adapter", attached, 2, base_model="toy")
        other.load_state(1, peft_format.load(Path(folder) / "adapter"))
    x, context = (part[4:] for part in make_inputs(dtype=torch.float32))
    error = error_of(
        other_model(x.repeat(2, 1, 1), context.repeat(2, 1, 1))[2:], model(*make_inputs(dtype=x.dtype))[4:]
    )
    return error < 1e-5, f"output differs by {error:.1e}"


def bound_holds(spec: MethodSpec) -> Verdict:
    """No declared bound is exceeded at random parameters, near and far."""
    largest: dict[str, float] = {}
    for moved in (0.1, 1.0, 100.0):
        _, attached = make_pack(spec, moved=moved)
        for adapter in attached.adapters.values():
            for name, bound in adapter.bounds().items():
                share = float((adapter.readings()[name] / bound.clamp_min(1e-300)).max())
                largest[name] = max(largest.get(name, 0.0), share)
    text = ", ".join(f"{name} reaches {share:.2f} of it" for name, share in largest.items())
    return all(share <= 1 + 1e-9 for share in largest.values()), text or "none declared"


def readings_are_finite(spec: MethodSpec) -> Verdict:
    """No reading is NaN or infinite, nor the distance negative, where all values are 0, 1, tiny or large."""
    wrong = []
    for value in (0.0, 1.0, 1e-30, 1e4):
        _, attached = make_pack(spec, dtype=torch.float32, moved=1.0)
        attached.flat.fill_(value)
        for stack in attached.stacks:
            for name, reading in stack.adapter.readings().items():
                if not reading.isfinite().all() or (name == "distance" and bool((reading < 0).any())):
                    wrong.append(f"{name} at {value:g}")
    return not wrong, f"wrong: {', '.join(dict.fromkeys(wrong)) or 'none'}"


def dtype_is_kept(spec: MethodSpec) -> Verdict:
    """Outputs have the input's dtype, trained values at least float32, and bfloat16 autocast changes little."""
    model, attached = make_pack(spec, dtype=torch.float16, moved=0.1)
    half = model(*make_inputs(dtype=torch.float16)).dtype
    holds = half == torch.float16 and attached.flat.dtype == torch.float32
    model, attached = make_pack(spec, dtype=torch.float32, moved=0.2)
    inputs = make_inputs(dtype=torch.float32)
    exact = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        holds = holds and attached.adapters["attn1.to_q"](inputs[0]).dtype == torch.bfloat16
        error = error_of(model(*inputs).float(), exact)
    return holds and exact.dtype == torch.float32 and error < 0.05, f"bfloat16 autocast: {error:.1e}"


def parameters_are_counted(spec: MethodSpec) -> Verdict:
    """``count_parameters`` is what trains; the number is that of one replica of the 8 matrices."""
    model, attached = make_pack(spec)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counted = attached.num_parameters()
    holds = counted * len(SEEDS) == trained == attached.flat.numel()
    return holds, f"{counted} values in {len(attached.adapters)} matrices"


PROMISES: dict[str, Callable[[MethodSpec], Verdict]] = {
    "starts at the base, or says so": starts_where_declared,
    "same seed, same start": starts_from_the_seed,
    "forward is x W^T": forward_is_weight,
    "merge equals forward": merge_is_forward,
    "gradient is that of weight()": gradient_is_that_of_weight,
    "gradient is that of differences": gradient_is_that_of_differences,
    "distance is ||W - W0||": distance_is_that_of_weight,
    "bound holds": bound_holds,
    "readings are finite": readings_are_finite,
    "a stack is its matrices": stack_is_its_matrices,
    "replicas do not leak": replicas_do_not_leak,
    "a NaN stays in its replica": nan_stays_in_its_replica,
    "only the adapter moves": only_the_adapter_moves,
    "detach restores": detach_restores,
    "saved and loaded, it is the same": state_moves_a_replica,
    "dtype is kept": dtype_is_kept,
    "parameters are counted": parameters_are_counted,
}


def main(arguments: Sequence[str]) -> int:
    """Check the method named; 0 if it keeps every promise, 1 if not, 2 if there is no such method."""
    return end_well(lambda: _check(arguments))


def _check(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith(("-", PEFT)):
        raise BadInput("usage: python -m adapters.check METHOD, a path/to/method.py or a name, not peft:<type>")
    spec = parse_method(arguments[0])
    try:
        make_pack(spec)
    except BadInput:
        raise
    except Exception as error:
        print(f"error: {arguments[0]} cannot be attached: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    findings = check(spec)
    width = max(len(finding.promise) for finding in findings)
    print(f"{spec.name}, {get_class(spec.name).__name__}")
    if derived := get_class(spec.name).derives():
        print(f"it has only weight(): Plateau derives a slow {' and a slow '.join(derived)} from it")
    for finding in findings:
        print(f"{finding.promise:{width}}  {'holds' if finding.holds else 'FAILS'}  {finding.numbers}")
    broken = sum(not finding.holds for finding in findings)
    print(f"{len(findings) - broken} of {len(findings)} promises hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
