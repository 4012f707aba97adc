"""The columns of a run's tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

SCHEMA = 1
KINDS = ("dynamics", "steps", "norms")
GAUGES = (
    "lambda", "bound", "saturation", "transform_distance", "orthogonality", "norm_a", "norm_b", "angle_a", "angle_b",
    "input_share", "drift",
)  # fmt: skip
SPECTRA = ("effective_rank", "energy_1", "energy_2", "energy_4", "intruders")  # of the update: training/spectra.py
COLUMNS = {
    "dynamics": ("step", "matrix", "distance", *GAUGES),
    "steps": ("step", "loss", "grad_norm", "lr", "lr_lambda", "seconds", "sharpness", "prodigy_d", "beside_distance"),
    "norms": (
        "step", "matrix", "colnorm_mean", "colnorm_sd", "rownorm_mean", "rownorm_sd",
        "dm_rows", "dd_rows", "dm_cols", "dd_cols", *SPECTRA,
    ),
    "scores": ("step", "metric", "prompt", "value"),
    "controls": ("metric", "kind", "picture", "against", "value"),
}  # fmt: skip
TEXT_COLUMNS = ("matrix", "metric", "prompt", "kind", "picture", "against")
# What controls are scored on (`training.tasks.controls`), in the order in which a scorer should put them.
CONTROL_ORDER = ("real", "vae", "same_class", "other", "shuffled", "noise")
CONTROL_KINDS = (*CONTROL_ORDER, "flat", "latent_noise", "blurred")
# What `training.whole_tables` asks of the columns of a file; older files may lack some.
FORMS = {
    kind: {
        **({"step!": "whole"} if "step" in names else {}),
        **{f"{name}!": "text" for name in names if name in TEXT_COLUMNS},
        **{name: "float" for name in names if name not in ("step", *TEXT_COLUMNS)},
        "*": "nothing",
    }
    for kind, names in COLUMNS.items()
}


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of one kind of table: `step` int32, names dictionary-encoded, every measurement float32."""

    def dtype(name: str) -> pa.DataType:
        text = pa.dictionary(pa.int32(), pa.string())
        return pa.int32() if name == "step" else text if name in TEXT_COLUMNS else pa.float32()

    return pa.schema(
        [(name, dtype(name)) for name in COLUMNS[kind]], metadata={b"plateau_schema": str(SCHEMA).encode()}
    )


def to_table(kind: str, columns: Mapping[str, Any]) -> pa.Table:
    """Columns (numpy arrays or Arrow dictionaries) as a table of the kind's schema; NaN stays NaN, missing is null."""
    wanted = schema(kind)
    length = len(next(iter(columns.values())))
    arrays = []
    for field in wanted:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(length, field.type))
        else:
            arrays.append(
                values if isinstance(values, pa.Array) else pa.array(values, type=field.type, from_pandas=False)
            )
    return pa.Table.from_arrays(arrays, schema=wanted)
