"""Turn flags into cells: find and check model, scorers and subjects, look up rates, expand the grid."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters import MethodSpec, get_class
from adapters.checkpoint import Checkpoint, check_fit
from adapters.errors import BadInput
from adapters.inject import try_on
from adapters.starting_point import agree, content_hash
from adapters.words import counted
from slurm.worker.run import Setting
from sweeps.options import Options, with_defaults
from sweeps.rates import Rates, check_base_lr, choose_rates, describe_borrowed, scaled
from training.cell import Cell, RunningFlags, TrainingFlags
from training.open_adapter import open_adapter
from training.task_kinds import PICTURES, TaskKind, kind_of

NOTHING = dict.fromkeys(("dino", "clip", "token", "instance_prompt"), "")  # in a setting of a task without these


@dataclass(frozen=True)
class LabelledCell:
    """A cell that a driver wants, with the names that it goes by in this sweep."""

    cell: Cell
    label: str
    labels: dict


@dataclass(frozen=True)
class ResolvedInputs:
    """Model, scorers and subjects of a sweep, located and hashed; what every cell shares.

    Attributes:
        setting: what every pack shares.
        shared: fields of every cell.
        subjects: the task's units (`training.tasks.task.Unit`), checked, in order.
        model_name: as the user called it.
        kind: the task.
        start: the adapter that every cell starts from; None for the method's own start.
    """

    setting: Setting
    shared: dict
    subjects: list[Any]
    model_name: str
    kind: TaskKind = kind_of(PICTURES)
    start: Checkpoint | None = None

    @property
    def model_hash(self) -> str:
        """Contents of the model."""
        return self.shared["model_hash"]

    @property
    def scorers(self) -> dict[str, str]:
        """Names and contents of the scorers."""
        return name_scorers(dataclasses.asdict(self.setting), self.shared["scorer_hash"])

    def of(self, options: Options) -> ResolvedInputs:
        """The same model, scorers and subjects under other flags."""
        return replace(self, shared=self.shared | shared_flags(options))


def name_scorers(setting: Mapping[str, Any], scorer_hash: str) -> dict[str, str]:
    """The scorers of a setting, as a sweep's file names them."""
    return {"scorers": f"{setting['dino']}, {setting['clip']}", "scorer_hash": scorer_hash}


def resolve_inputs(options: Options, *, num_subjects: int, split: str = "evidence") -> ResolvedInputs:
    """Locate and check model, scorers and subjects.

    Args:
        options: the flags.
        num_subjects: how many subjects of `split` are used where the flags name none.
        split: which split they come from.

    Raises:
        BadInput: for anything that is missing or broken.
    """
    kind, task_options = options.kind
    maker = kind.open()
    folder, names = choose_subjects(options.subjects, num_subjects, split, task=kind.name)
    found = maker.find(options, names, folder)
    places: dict[str, Any] = NOTHING | dict(found.setting)
    setting = Setting(
        **places, runs=str(options.runs.resolve()), device=choose_device(options),
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(RunningFlags)},
    )  # fmt: skip
    shared = {
        "task": kind.name,
        "task_options": task_options,
        "scorer_hash": "",
        **found.shared,
        **shared_flags(options),
    }
    start = open_start(options, Path(setting.model)) if options.init_adapter else None
    if start is not None:
        shared["init_adapter"] = content_hash(start)
    return ResolvedInputs(setting, shared, list(found.units), options.model, kind, start)


def shared_flags(options: Options) -> dict:
    """The flags that are fields of every cell; those that are left to the model are not among them."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainingFlags)}
    num_class_images = options.num_class_images if options.prior_loss_weight > 0 else 0
    return {n: v for n, v in given.items() if v is not None} | {"num_class_images": num_class_images}


def open_start(options: Options, model: Path) -> Checkpoint:
    """The adapter that `--init-adapter` names, as one of the method asked for; the text encoder's part is left out.

    Raises:
        BadInput: it is no adapter, holds NaN, or is of another method or rank than the flags' or of another model; what
            does not fit is named.
    """
    assert options.init_adapter is not None
    if not (model / "model_index.json").is_file():
        raise BadInput(f"--init-adapter reads adapters of a diffusers pipeline's U-Net; {model} is none")
    opened = open_adapter(options.init_adapter, str(model))
    part = opened.checkpoint.of_unet().check_finite()
    if len(part.shapes) < len(opened.checkpoint.shapes):
        print(f"the text encoder's part of {options.init_adapter} is left out", file=sys.stderr)
    base = opened.need_base("--init-adapter")
    for path in part.shapes:
        check_fit(part, path, base.read(path, part.source))
    return [agree(part, spec, options.rank) for spec in options.specs()][0]


def choose_device(options: Options) -> str:
    """The device asked for, or the best there is where packs will run.

    Raises:
        BadInput: if CUDA is asked for and not there.
    """
    cluster, device = options.where.choose(), options.device
    if cluster is not None:
        if device == "cuda" and not cluster.num_gpus:
            raise BadInput("--device is cuda; tasks get no GPU: give --gpus 1")
        return cluster.device if device == "auto" else device
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device is cuda; no CUDA device is usable here: use auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def choose_subjects(
    asked: Sequence[str], count: int, split: str, without: Sequence[str] = (), task: str = PICTURES
) -> tuple[Path, list[str]]:
    """The folder of subjects and the names of those to use, a number of them in the task's order.

    Args:
        asked: `--subjects`: an optional folder first, then names, or one number.
        count: how many are used where no name and no number is given.
        split: the split that unnamed subjects come from, where there are splits.
        without: subjects that are not taken unless they are named.
        task: the name of the task, which says what the subjects are.

    Raises:
        BadInput: unknown folder, or more subjects asked for than there are.
    """
    kind = kind_of(task)
    maker = kind.open()
    folder, rest = maker.folder(asked)
    if rest and not (len(rest) == 1 and rest[0].isdigit()):
        return folder, list(dict.fromkeys(rest))
    names, which = maker.pool(folder, split)
    pool = [name for name in names if name not in without]
    wanted = int(rest[0]) if rest else min(count, len(pool))
    if not 1 <= wanted <= len(pool):
        raise BadInput(f"--subjects is {wanted}; {folder} has {counted(len(pool), kind.unit)}{which}")
    return folder, pool[:wanted]


def expand(
    options: Options, inputs: ResolvedInputs, specs: Iterable[MethodSpec] | None = None, *, quiet: bool = False
) -> list[LabelledCell]:
    """Every cell of methods x subjects x seeds x multipliers; cells of one subject stand together.

    Which base rates are borrowed is said on stderr, unless `quiet`.

    Raises:
        BadInput: if a rank does not fit the model, or a base rate is missing.
    """
    specs = list(options.specs() if specs is None else specs)
    shapes = inputs.kind.open().shapes(inputs.setting.model, inputs.shared["task_options"])
    check_rank(options.rank, shapes, specs)
    check_base_lr(options, specs, inputs.model_name, inputs.model_hash)
    planned = []
    for spec in specs:
        rates = choose_rates(options, spec, inputs.model_name, inputs.model_hash)
        if rates.borrowed and not quiet:
            print(describe_borrowed(spec, rates, inputs.model_name), file=sys.stderr)
        for subject in inputs.subjects:
            for seed in options.seeds:
                for multiplier in options.multipliers if options.steps else (1.0,):
                    labels = {"multiplier": multiplier, "scale": options.scale, **name_rates(rates)}
                    planned.append(
                        plan_cell(inputs, spec, subject, seed, labels, **scaled(rates, multiplier, options.scale))
                    )
    return planned


def expand_each(
    options: Options, inputs: ResolvedInputs, changes: Iterable[Mapping[str, object]]
) -> list[LabelledCell]:
    """The cells of the grid under each of several changes of the flags, which go before what is said of a single method.

    Raises:
        BadInput: as `expand`.
    """
    grids = []
    for number, change in enumerate(changes):
        flags = with_defaults(options, **change)
        changed = {name for name, value in change.items() if value is not None}
        specs = [replace(s, words={k: v for k, v in s.words.items() if k not in changed}) for s in options.specs()]
        grids.append(expand(flags, inputs.of(flags), specs, quiet=number > 0))
    return [planned for grid in grids for planned in grid]


def name_rates(rates: Rates) -> dict[str, object]:
    """The labels that say which base rate a run has, and where it comes from."""
    return {"base_lr": rates.lr, "rate_source": rates.source}


def plan_cell(
    inputs: ResolvedInputs, spec: MethodSpec, subject: Any, seed: int, labels: dict, **own: object
) -> LabelledCell:
    """One cell of resolved inputs; `own` are the fields in which it differs from the shared ones."""
    fields = inputs.shared | own
    if not get_class(spec.name).uses_rank:
        fields = fields | {"rank": 0}
    cell = Cell(**(fields | {"method": spec.name, "options": spec.canonical, "seed": seed} | subject.fields(fields)))
    label = f"x{labels['multiplier']:g}" if labels.get("multiplier") is not None else f"lr{cell.lr:g}"
    named = {"label": spec.label} if spec.words.get("label") or "@" in spec.name else {}
    about = {"model": inputs.model_name, "class": subject.cls, "split": subject.split}
    return LabelledCell(cell, label, labels | named | about)


def base_cells(planned: Iterable[LabelledCell]) -> list[LabelledCell]:
    """The base model's cells that the planned ones are compared with, each once."""
    cells = {p.cell.base().identity(): (p.cell.base(), p.labels) for p in planned}
    return [
        LabelledCell(
            cell,
            "base",
            {"multiplier": None, "model": labels["model"], "class": labels["class"], "split": labels["split"]},
        )
        for cell, labels in cells.values()
    ]


def check_rank(rank: int, shapes: Mapping[str, tuple[int, int]], specs: Iterable[MethodSpec]) -> None:
    """Refuse, before anything is loaded, a rank above the smallest adapted matrix and a method that does not fit matrix or rank.

    Raises:
        BadInput: naming the rank or the option, and the matrix or the method.
    """
    specs = list(specs)
    for spec in specs:
        if get_class(spec.name).uses_rank and rank % (multiple := get_class(spec.name).rank_multiple):
            raise BadInput(f"--rank is {rank}; {spec.name} needs a multiple of {multiple}")
    path, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if rank > min(shape) and any(get_class(spec.name).uses_rank for spec in specs):
        raise BadInput(
            f"--rank is {rank}; the smallest matrix, {path}, is {shape[0]} x {shape[1]}: at most {min(shape)}"
        )
    for spec in specs:
        try:
            try_on(spec, shapes, rank)
        except BadInput as error:
            raise BadInput(f"--method {spec.name}: {error}") from None
