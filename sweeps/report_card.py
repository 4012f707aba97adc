"""Report a judgement: the card as Markdown, as JSON that HF PEFT's method comparison reads, and as a page."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import sys
from typing import TYPE_CHECKING, Any

import torch

from adapters.words import counted
from analysis import Results, to_markdown
from analysis.card import Card, make_card
from analysis.metrics import side_effect_names
from figures.figure_set import sheet_pictures
from figures.page import write_page
from figures.registry import draw_lr_robustness
from sweeps.driver import PAGE, SweepOutcome
from sweeps.report import command, keep_in_docs, processor, say_notes, say_where, show
from training import step_price
from training.pack import Setting
from training.probe import Load
from training.step_price import StepPrice
from training.store import writing

if TYPE_CHECKING:
    from sweeps.judging import Judgement, Tuned

CARD = "card"
PACKAGES = ("transformers", "diffusers", "datasets", "peft", "torch")
PEFT_KEYS = {"dino": "test dino_similarity"}  # as PEFT's comparison calls a score; others keep their names


def report_card(outcome: SweepOutcome, options: Judgement, tuned: Tuned, setting: Setting) -> None:
    """Print the verdict, and write `card.md`, `card.json`, the figure and the page."""
    results = outcome.results
    is_own = results.runs["method"].eq(tuned.spec.name) & results.runs["options"].eq(tuned.spec.canonical)
    card = make_card(
        results, results.runs.loc[is_own, "series"].iloc[0], list(results.runs.loc[~is_own, "series"].unique())
    )
    found = measure_price(options, setting, results)
    cost = cost_lines(results, card, tuned, found)
    show(card.facts_in_words())
    print("\n".join(card.verdict))
    drawn = draw_lr_robustness(results)
    say_notes(drawn)
    say_where(drawn.save(outcome.folder))
    about = [("command", command()), ("machine", processor()), *cost]
    write_page(outcome.folder / PAGE, results, title=f"{card.name}: a method card", about=about, card=card)
    result = peft_result(results, card, tuned, found)
    for folder in (outcome.folder, *([options.docs] if options.docs else [])):
        write_card(folder, card, cost, tuned, result)
    print(f"card: {outcome.folder / f'{CARD}.md'} {outcome.folder / f'{CARD}.json'}")
    print(f"page: {outcome.folder / PAGE}")
    if options.docs is not None:
        keep_in_docs(results, options.docs, draw_lr_robustness, shown=sheet_pictures)


def measure_price(options: Judgement, setting: Setting, results: Results) -> StepPrice | None:
    """The step's price beside LoRA's, on the device and in the shape of the runs; None where it cannot be measured."""
    run = results.runs.iloc[0]
    load = Load(
        setting.model, setting.device, int(run["resolution"]), int(run["train_batch_size"]), options.mixed_precision,
        task=str(run["task"]), task_options=str(run["task_options"]),
    )  # fmt: skip
    try:
        return step_price.price(load, options.method[0], options.rank)
    except RuntimeError as error:  # the card is worth more than this line of it
        print(f"the price of a step was not measured: {error}", file=sys.stderr)
        return None


def cost_lines(results: Results, card: Card, tuned: Tuned, found: StepPrice | None) -> list[tuple[str, str]]:
    """Where the rate comes from, and what judging and a step cost."""
    runs = results.runs[results.runs["series"] == card.name].drop_duplicates("run_id")
    lines = [("rate", tuned.source)]
    if tuned.trials is not None:
        lines.append(("search", f"{len(tuned.trials)} trials, {tuned.minutes:.1f} worker-minutes"))
    lines.append(("grid", f"{counted(len(runs), 'run')}, {runs['seconds'].sum() / 60:.1f} worker-minutes"))
    return [*lines, *(step_price.describe(found) if found else ())]


def write_card(folder: Any, card: Card, cost: list[tuple[str, str]], tuned: Tuned, result: dict[str, Any]) -> None:
    """Write both files; the search's trials stand at the end of the page."""
    text = card.to_markdown(cost)
    if tuned.trials is not None:
        text += f"\n## Trials\n\n{to_markdown(tuned.trials.drop(columns=['method', 'options']))}\n"
    with writing(folder / f"{CARD}.md") as aside:
        aside.write_text(text, encoding="utf-8")
    with writing(folder / f"{CARD}.json") as aside:
        aside.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def peft_result(results: Results, card: Card, tuned: Tuned, found: StepPrice | None) -> dict[str, Any]:
    """The result at the best rate as a file of PEFT's `method_comparison/image-gen`, and the card under `plateau`.

    Memory is the process's peak, in bytes; the metrics are means over subjects.
    """
    facts, runs = card.facts.iloc[0], results.runs
    own = runs[runs["series"] == card.name].drop_duplicates("run_id")
    best = own[own["lr"] == (facts["lr"] if facts["lr"] == facts["lr"] else own["lr"].min())]  # where nothing is best
    one = best.iloc[0]
    headline = results.kind.headline.name
    memory = int(found.peak_mib * 2**20) if found else None
    metrics = {
        "step": int(one["steps"]), "train samples": int(one["steps"] * one["train_batch_size"]),
        "train loss": _number(_last_loss(results, best["run_id"])),
        PEFT_KEYS.get(headline, headline): _number(facts["peak"]),
        **{name: _number(facts[name]) for name in side_effect_names(results.kind) if name in facts},
    }  # fmt: skip
    return {
        "run_info": {
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "total_time": _number(best["seconds"].mean()),
            "experiment_name": f"{one['method']}/plateau-{one['model']}",
            "peft_branch": "main",
            "train_config": {
                "model_id": str(one["model"]), "dtype": "bfloat16" if one["mixed_precision"] == "bf16" else "float32",
                "resolution": int(one["resolution"]), "batch_size": int(one["train_batch_size"]),
                "max_steps": int(one["steps"]), "seed": int(one["seed"]), "grad_norm_clip": float(one["max_grad_norm"]),
                "optimizer_type": "AdamW",
                "optimizer_kwargs": {"lr": float(one["lr"]), "weight_decay": float(one["adam_weight_decay"])},
                "lr_scheduler": str(one["lr_scheduler"]), "num_inference_steps": int(one["num_inference_steps"]),
                "guidance_scale": float(one["guidance_scale"]),
            },
            "peft_config": {"peft_type": str(one["method"]).removeprefix("peft:").upper(), "options": str(one["options"])},
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": memory, "accelerator_memory_max": memory,
            "accelerator_memory_reserved_99th": memory, "train_time": _number(best["seconds"].mean()),
            "file_size": int(4 * one["num_parameters"]), "num_trainable_params": int(one["num_parameters"]),
            "num_total_params": None, "status": "success", "metrics": [metrics],
        },
        "meta_info": {
            "model_info": {"sha": str(one["model_hash"])}, "dataset_info": {"subjects": sorted(runs["subject"].unique())},
            "package_info": {f"{name}-version": _version(name) for name in PACKAGES},
            "system_info": {"system": platform.system(), "machine": platform.machine(), "processor": processor()},
            "pytorch_info": torch.__version__,
        },
        "plateau": card.to_json() | {
            "rate_source": tuned.source, "price": dataclasses.asdict(found) if found else None,
            "scorer_hash": str(one["scorer_hash"]),
        },
    }  # fmt: skip


def _last_loss(results: Results, run_ids: Any) -> float:
    losses = results.losses()
    return float(losses.loc[losses["run_id"].isin(set(run_ids)), "loss"].mean())


def _number(value: Any) -> float | None:
    return None if value != value else float(value)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
