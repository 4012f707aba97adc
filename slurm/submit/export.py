"""Write sbatch files for a cluster that this machine cannot submit to: `<runs>/<sweep>/export/`.

Everything in them is relative to the runs folder, which may be copied or mounted elsewhere. Nothing is recorded as sent:
jobs take their packs by claims, wherever they come from.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.store.code_version import ROOT, code_version
from slurm.store.layout import SweepFolder
from slurm.submit.sbatch import Request, literal, set_up
from training.planned import read_spec_file
from training.store import writing

README = """\
# Packs of the sweep `{sweep}`, to be run by hand

Packs: {packs}; cells: {cells}; job arrays: {arrays}. On a machine that can submit, with Plateau's checkout and its Python:

```
cd RUNS_FOLDER                       # the folder that holds {sweep}/
export PLATEAU=CHECKOUT              # default: {root}
export PLATEAU_PYTHON=PYTHON         # default: {python}
{commands}
```

One pack without SLURM:

```
cd CHECKOUT && python -m slurm.job RUNS_FOLDER/{sweep}/{spec} --code {code}
```

A job that was killed goes on where its checkpoint is, when it is submitted again; packs that are done or held elsewhere are
passed over. `python -m slurm.status RUNS_FOLDER/{sweep}` shows how far everything is; the driver's own command draws the
figures at the end.

The specifications name these places:

{places}

Where they are others on the cluster, put them right in `{sweep}/packs/`:
`find {sweep}/packs -name '*.json' -exec sed -i 's#OLD#NEW#' {{}} +`. The code must be version {code}, the one that planned this.
"""
COMMAND = """\
PLATEAU_HERE={root} PYTHON_HERE={python}
PLATEAU="${{PLATEAU:-$PLATEAU_HERE}}"
cd "${{SLURM_SUBMIT_DIR:-$PWD}}" && [ -f {listing} ] || {{ echo "submit this from the runs folder" >&2; exit 1; }}
cd {sweep}
mapfile -t TASKS < export/{name}.txt
IFS=$'\t' read -ra SPECS <<< "${{TASKS[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
export PYTHONPATH="$PLATEAU${{PYTHONPATH:+:$PYTHONPATH}}"
exec "${{PLATEAU_PYTHON:-$PYTHON_HERE}}" -P -u -m slurm.task "${{SPECS[@]/#/$PWD/}}" --code {code}"""


def export(sweep: SweepFolder, requests: Sequence[Request]) -> Path:
    """Write one sbatch file and one list of specifications for each array, and a README.

    Args:
        sweep: the sweep.
        requests: the arrays.

    Returns:
        The folder.

    Raises:
        StoreError: if it cannot be written.
    """
    folder, files = sweep.path / "export", sweep.scan()
    for old in [*folder.glob("array-*.sh"), *folder.glob("array-*.txt")]:
        old.unlink()
    names = [f"array-{number:03d}" for number in range(1, len(requests) + 1)]
    specs = {
        pack: f"packs/{files[pack].spec.relative_to(sweep.packs).as_posix()}" for r in requests for pack in r.packs
    }
    for name, request in zip(names, requests):
        lines = "".join("\t".join(specs[pack] for pack in task) + "\n" for task in request.tasks)
        _write(folder / f"{name}.txt", lines)
        _write(folder / f"{name}.sh", export_text(request, sweep.path.name, name))
    (folder / "logs").mkdir(exist_ok=True)
    first = requests[0].packs[0]
    setting = read_spec_file(files[first].spec)["setting"]
    places = "\n".join(
        f"- {key}: `{setting[key]}`" for key in ("model", "dino", "clip", "subjects", "runs") if setting[key]
    )
    commands = "\n".join(f"sbatch {shlex.quote(f'{sweep.path.name}/export/{name}.sh')}" for name in names)
    _write(folder / "README.md", README.format(
        sweep=sweep.path.name, packs=len(specs), cells=sum(r.num_cells for r in requests), arrays=len(requests),
        root=ROOT, python=sys.executable, commands=commands, spec=specs[first], code=code_version(), places=places,
    ))  # fmt: skip
    return folder


def export_text(request: Request, sweep: str, name: str) -> str:
    """The file that sbatch reads."""
    from submitit.slurm.slurm import _make_sbatch_string

    logs = literal(Path(sweep, "export", "logs"))
    parameters = request.parameters(f"plateau-{name}", logs)
    more = {key: value for key, value in parameters["additional_parameters"].items() if key != "chdir"}
    more["export"] += ",PLATEAU,PLATEAU_PYTHON"
    count = len(request.tasks) if len(request.tasks) > 1 else None
    job = "%A_%a" if count else "%j"
    more |= {"output": f"{logs}/{job}.out", "error": f"{logs}/{job}.err"}
    parameters |= {"additional_parameters": more, "setup": set_up(request.cluster.setup)}
    command = COMMAND.format(
        root=shlex.quote(str(ROOT)), python=shlex.quote(sys.executable), code=code_version(), name=name,
        sweep=shlex.quote(sweep), listing=shlex.quote(f"{sweep}/export/{name}.txt"),
    )  # fmt: skip
    return _make_sbatch_string(command, logs, map_count=count, **parameters)


def _write(path: Path, text: str) -> None:
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")
