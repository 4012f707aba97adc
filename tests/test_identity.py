"""A run keeps its name for ever: through every later version, the same cell has the same hash."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from training.cell import Cell

ROOT = Path(__file__).resolve().parents[1]
PLAIN = Cell(
    method="delora", options="rank_norm=true", rank=16, subject="dog", seed=3, steps=500, lr=0.004,
    model_hash="5d" * 32, subject_hash="ac" * 32, scorer_hash="70" * 32,
)  # fmt: skip
FIELDS = {field.name: field for field in dataclasses.fields(Cell)}
CHANGED: dict[str, tuple[Any, str]] = {
    "method": ("lora", "e2e59c11ec46112d"),
    "options": ("", "410e9dc2339f96da"),
    "rank": (4, "e19e78d490ff0180"),
    "subject": ("cat", "a8fa818703e17bc8"),
    "seed": (0, "7adfbf7465ba9fd8"),
    "steps": (100, "6e617b9415f28e64"),
    "lr": (0.001, "46824a5c3456b347"),
    "lr_lambda": (0.01, "eb3651ae0b35e6ec"),
    "lr_magnitude": (0.02, "f26944e660964dfc"),
    "boundary": (12.5, "8fd3b93b4c334ab0"),
    "adam_weight_decay": (0.0, "dd503d99b7271bd9"),
    "max_grad_norm": (0.5, "a24913874fdff9b4"),
    "train_batch_size": (2, "3805a025d3a2e52f"),
    "gradient_accumulation_steps": (3, "a9b1af817509d240"),
    "lr_scheduler": ("cosine", "4c3500eb5f936d23"),
    "lr_warmup_steps": (10, "52740bae57970183"),
    "prior_loss_weight": (1.0, "1965c02971cda18c"),
    "num_class_images": (7, "c45e15aba5f7d89e"),
    "snr_gamma": (5.0, "881e6d01e7c35a97"),
    "mixed_precision": ("bf16", "1012fe7097a7e737"),
    "resolution": (128, "57fe2c165a715003"),
    "eval_steps": ((100, 200), "2d9cf28020750870"),
    "num_prompts": (4, "d2149fbe5f37755f"),
    "num_images": (3, "1d0e0da6fccc1ad4"),
    "num_inference_steps": (20, "d3c8bb247d46ff0c"),
    "guidance_scale": (7.5, "e75e344b5fbe6b00"),
    "gauge_every": (10, "88b765d90bdf0fc6"),
    "norms_every": (25, "44c36df0fb6404f3"),
    "model_hash": ("m", "5c7912e5e4c1a2af"),
    "subject_hash": ("s", "f92ea1926354d6a8"),
    "scorer_hash": ("c", "d204db2481b219de"),
    "init_adapter": ("i", "712507a9f094715c"),
    "num_drift_prompts": (6, "4fdb3771ccf89efe"),
    "sharpness_steps": ((0, 250), "ac2f2261f9aefa01"),
    "num_instance_images": (2, "9636ee65e4173c73"),
    "allow_tf32": (True, "7f05daf7c3ad9b6c"),
    "optimizer": ("prodigy", "766d041079a62439"),
    "d_coef": (2.0, "770584cc0cd4468f"),
    "task": ("text", "37bec7ab930507c0"),
    "task_options": ("tokens=16", "1bbbc8bd8595cca5"),
}


def test_cells_keep_their_hashes() -> None:
    """Every field is hashed, in the form that it has always had; a newer one is left out while it has its default."""
    assert PLAIN.identity() == "505caac4156c480f58cffc9cfbbdbd427076092b0218f396287387fd8e8bd21b"
    new = [name for name in FIELDS if name not in CHANGED]
    assert not new, f"add to CHANGED a value of {new[0]} that is not its default, and the hash that PLAIN then has"
    changed = {name: dataclasses.replace(PLAIN, **{name: value}) for name, (value, _) in CHANGED.items()}
    assert {name: cell.identity()[:16] for name, cell in changed.items()} == {name: CHANGED[name][1] for name in FIELDS}


@pytest.mark.parametrize("runs", sorted((ROOT / "docs").glob("*/*/runs.parquet")), ids=lambda path: path.parent.name)
def test_the_names_of_the_evidence_follow_from_its_fields(runs: Path) -> None:
    for row in pd.read_parquet(runs).to_dict("records"):
        cell = Cell(**{name: plain(name, row[name]) for name in FIELDS if name in row and is_there(row[name])})
        assert cell.identity()[:10] == row["run_id"].rsplit("-", 1)[1]


def is_there(value: Any) -> bool:
    """Whether a table's place holds a value."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def plain(name: str, value: Any) -> Any:
    """The value as a cell holds it: steps as a tuple; a whole number that a column with gaps made a float."""
    if name.endswith("_steps") and not isinstance(value, int | float):
        return tuple(int(step) for step in value)
    return int(value) if FIELDS[name].type == "int" else value
