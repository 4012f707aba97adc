"""Allowed contents of the JSON files in a runs folder: printable names, paths inside the folder, finite numbers.

The folder may be a stranger's: nothing read from it reaches a path, a terminal or a process before it has one of these forms.
Missing fields are the reader's business. Imports no torch.
"""

from __future__ import annotations

import re
from typing import Any

from adapters.documents import COUNT, FLAG, NAME, NUMBER, PART, PLACE, SCALAR, TEXT, Form, one_of
from training.cell import TYPES
from training.states import RunStatus

_OF_TYPE = {int: COUNT, float: NUMBER, float | None: NUMBER, str: NAME, bool: FLAG, tuple[int, ...]: [COUNT]}
_SEED = Form("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))  # of any size
_PROCESS = Form("the number of a process", lambda value: COUNT.fits(value) and 0 < value < 2**31)
_JOB = Form(
    "a job of SLURM", lambda value: isinstance(value, str) and bool(re.fullmatch(r"(\d+(_\d+)?)?", value, re.ASCII))
)
_LABEL = Form(
    "a number, a name in one line, true or false, or a list of them",
    lambda value: all(item is None or SCALAR.fits(item) for item in (value if isinstance(value, list) else [value])),
)

CELL: dict[str, Any] = {name: _OF_TYPE.get(of_type, NAME) for name, of_type in TYPES.items()}
CELL |= {"method": PART, "subject": PART, "init_adapter": PART, "*": _LABEL}
LABELS = {"*": _LABEL}
MATRIX = {
    "matrix": NAME, "block": NAME, "kind": NAME, "attention": NAME, "num_out": COUNT, "num_in": COUNT, "base_norm": NUMBER,
}  # fmt: skip
RUN = {
    "run_id": NAME, "sweep": NAME, "status": one_of(*RunStatus), "cell": CELL, "labels": LABELS, "matrices": [MATRIX],
    "diverged_step": COUNT, "num_parameters": COUNT, "seconds": NUMBER, "pack_seconds": NUMBER,
    "picture_seconds": NUMBER, "error": TEXT,
    "adapter": {"*": NAME}, "provenance": {"commit": NAME, "dirty": FLAG, "*": Form("anything", lambda value: True)},
}  # fmt: skip
IMAGES = {"run_id": NAME, "images!": [{"file!": PLACE, "step!": COUNT, "prompt!": TEXT, "seed!": _SEED}]}
SETTING = {
    "model": NAME, "dino": NAME, "clip": NAME, "subjects": NAME, "token": NAME, "instance_prompt": NAME, "runs": NAME,
    "device": one_of("cpu", "cuda"), "threads": COUNT, "checkpoint_every_s": NUMBER,
}  # fmt: skip
SPEC = {
    "pack": PART, "setting!": SETTING,
    "runs!": [{"run_id!": PART, "folder": PLACE, "identity": NAME, "cell!": CELL | {"method!": PART, "steps!": COUNT},
               "labels": LABELS}],
}  # fmt: skip
BEAT = {
    "turn": COUNT, "count": COUNT, "time": NUMBER, "phase": TEXT, "step": COUNT, "steps": COUNT, "diverged": COUNT,
    "rate": NUMBER, "run": PART, "loss": TEXT, "distance": TEXT,
}  # fmt: skip
HOLDER = {
    "host": TEXT, "user": TEXT, "machine": TEXT, "pid": _PROCESS, "started": COUNT, "job": _JOB, "restart": COUNT,
}  # fmt: skip
CLAIM = {
    "holder": HOLDER, "began": NUMBER, "outcome": NAME, "error": TEXT, "at_most": COUNT, "reason": TEXT,
    "reopened": FLAG, "last": BEAT,
}  # fmt: skip
ENDED = {
    "pack": PART, "runs!": {"*": one_of(*RunStatus)}, "turns": COUNT, "seconds": NUMBER,
    "reason": TEXT, "errors": {"*": TEXT},
    "cost": {"kind!": TEXT, "size!": COUNT, "rows!": NUMBER, "passes!": NUMBER, "training_s!": NUMBER, "pictures_s!": NUMBER},
}  # fmt: skip
SUBMISSION = {
    "token!": PART, "number": COUNT, "user": TEXT, "host": TEXT, "made": TEXT, "cluster": NAME, "settings": {}, "executor": NAME,
    "code": TEXT, "folder": NAME, "job": _JOB, "tasks": [[PART]], "state": NAME, "error": TEXT, "workers": [HOLDER],
    "time_min": NUMBER,
}  # fmt: skip
TALLY = {"packs": COUNT, "runs": COUNT}
SWEEP = {"model": TEXT, "model_hash": TEXT, "scorers": TEXT, "scorer_hash": TEXT}
