"""The house keeps its shape: arrows between the rooms, no torch where none belongs, documents that name real files."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.warm_program import run_warm

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
ROOMS = sorted({name.split(".")[0] for name in PACKAGES})

# adapters -> training -> slurm -> sweeps, and training.store -> analysis -> figures -> sweeps. Read: a room may import
# the modules beginning with these names, itself among them.
ARROWS = {
    "adapters": ["adapters"],
    "training": ["adapters", "training"],
    "slurm": ["adapters", "training", "slurm"],
    "analysis": [
        "adapters",
        "training.store",
        "training.command_line",
        "training.cell",
        "training.planned",
        "training.states",
        "training.read_picture",
        "training.task_kinds",
        "analysis",
    ],
    "figures": [
        "adapters",
        "training.store",
        "training.command_line",
        "training.read_picture",
        "training.task_kinds",
        "analysis",
        "figures",
    ],
    "sweeps": ["adapters", "training", "slurm", "analysis", "figures", "sweeps"],
}
# The rooms of slurm, in the order in which they may be imported, and what they may know of what they run.
SLURM_ROOMS = ("store", "worker", "estimate", "submit", "status")
UNKNOWN_TO_SLURM = [
    "training.tasks",
    "training.optimizer",
    "training.prodigy",
    "training.probe.measure_or_fit",
    "adapters.base",
    "adapters.pack",
]
TORCH_FREE = [
    "analysis", "figures", "training/store.py", "training/command_line.py", "training/read_picture.py", "adapters/__init__.py",
]  # fmt: skip
TORCH_FREE += ["adapters/documents.py", "adapters/errors.py", "adapters/words.py", "adapters/method_words.py"]
TRAINING_ONLY = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "peft"}
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "stuff"}
# Spelled in halves, so that this file may stand in the repository too.
FORBIDDEN = [
    first + second
    for first, second in [
        ("pypi", ".org"), ("python", "hosted"), ("npm", "js"), ("download.py", "torch"), ("deb.", "debian"),
        ("/wo", "rk/"),
    ]
]  # fmt: skip


def list_files(*suffixes: str) -> list[Path]:
    """Files that git has or would take, in the checkout's order; all files where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not {".venv", ".git", "runs"} & set(path.parts)]
    return sorted({path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes)})


def list_modules(*places: str) -> list[Path]:
    """Python files of the given rooms (or single files), relative to the checkout."""
    names = [path.relative_to(ROOT) for path in list_files(".py")]
    return [name for name in names if any(name.as_posix() == p or name.parts[0] == p for p in places)]


def find_imports(name: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import in a file, inside functions too; `from a import b` gives `a.b`."""
    package = name.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse((ROOT / name).read_text(), str(name))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, str(word.value)) for word in node.args if isinstance(word, ast.Constant))


def begins_with(module: str, names: list[str]) -> bool:
    """Whether a module is one of the names or lies inside one."""
    return any(module == name or module.startswith(name + ".") for name in names)


# Arrows.


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_never_point_back(room: str) -> None:
    ours = [*ROOMS, "benchmarks", "tools", "tests"]
    wrong = [
        f"{name}:{line}: {room} imports {module}"
        for name in list_modules(room)
        for line, module in find_imports(name)
        if module.split(".")[0] in ours and not begins_with(module, ARROWS[room])
    ]
    assert not wrong, f"{room} may import {ARROWS[room]} only:\n" + "\n".join(wrong)


def test_rooms_of_slurm_import_those_before_them_alone() -> None:
    wrong = [
        f"{name}:{line}: imports {module}"
        for number, room in enumerate(SLURM_ROOMS)
        for name in list_modules("slurm")
        for line, module in find_imports(name)
        if name.parts[1] == room and begins_with(module, [f"slurm.{later}" for later in SLURM_ROOMS[number + 1 :]])
    ]
    wrong += [
        f"{name}:{line}: imports {module}"
        for name in list_modules("slurm")
        for line, module in find_imports(name)
        if begins_with(module, UNKNOWN_TO_SLURM)
    ]
    assert not wrong, "\n".join(wrong)
    assert {name.parts[1] for name in list_modules("slurm")} == {*SLURM_ROOMS, "__init__.py", "job.py", "task.py"}


def test_files_import_each_other_in_no_circle() -> None:
    """Nor for types alone, nor inside functions: a circle is two files that are one."""
    modules = {".".join(name.with_suffix("").parts): name for name in list_modules(*ROOMS, "benchmarks", "tools")}
    graph = {
        module: {
            found
            for _, wanted in find_imports(name)
            for found in (wanted, wanted.rpartition(".")[0])
            if found in modules
        }
        for module, name in modules.items()
        if name.name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()


def test_classes_have_names_of_their_own() -> None:
    """A program's own flags are called `Options` everywhere."""
    found: dict[str, list[str]] = {}
    for name in list_modules(*ROOMS, "benchmarks", "tools"):
        for node in ast.parse((ROOT / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name != "Options":
                found.setdefault(node.name, []).append(str(name))
    assert not {name: places for name, places in found.items() if len(places) > 1}


def test_text_files_name_their_encoding() -> None:
    """Which else is the machine's; ruff's PLW1514 sees it only where it knows that a name is a path."""
    unnamed = []
    for name in list_modules(*ROOMS, "benchmarks", "tools"):
        for call in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                is_text = call.func.attr in ("read_text", "write_text")
                if is_text and "encoding" not in {keyword.arg for keyword in call.keywords}:
                    unnamed.append(f"{name}:{call.lineno}")
    assert not unnamed


def test_what_processes_say_is_read_as_utf8() -> None:
    """`text=True` reads it in the locale's encoding, and ends in an error where the process wrote in another one."""
    wrong = []
    for name in list_modules(*ROOMS, "benchmarks", "tools"):
        for call in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                decodes = "True" in (given.get("text"), given.get("universal_newlines"))
                pipes = given.keys() & {"capture_output", "stdout", "stderr"} and "encoding" in given
                if decodes or (pipes and "errors" not in given):
                    wrong.append(f"{name}:{call.lineno}")
    assert not wrong


def test_torch_is_not_imported_when_only_reading_results() -> None:
    wrong = [
        f"{name}:{line}: imports {module}"
        for name in list_modules(*TORCH_FREE)
        for line, module in find_imports(name)
        if module.split(".")[0] in TRAINING_ONLY
        or (
            name.parts[0] in ("analysis", "figures")
            and module.startswith("adapters.")
            and "." in module[9:]
            and f"{'/'.join(module.split('.')[:2])}.py" not in TORCH_FREE
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_analysis_and_figures_import_when_torch_is_absent() -> None:
    program = f"""
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {TRAINING_ONLY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for room in ("analysis", "figures"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        importlib.import_module(module.name)
for name in ("adapters", "training.store"):
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_adapters_is_ours_when_imported() -> None:
    import adapters

    assert Path(str(adapters.__file__)) == ROOT / "adapters" / "__init__.py"


# Packages and dependencies.


def test_shapes_are_checked_where_they_are_annotated() -> None:
    options = PROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    (given,) = (option.partition("=")[2] for option in options if option.startswith("--jaxtyping-packages="))
    *checked, _ = given.split(",")
    annotated = [path for path in list_modules("adapters", "training") if "jaxtyping" in (ROOT / path).read_text()]
    assert annotated
    for path in annotated:
        name = str(path).removesuffix(".py").replace("/", ".")
        assert any(f"{name}.".startswith(f"{package}.") for package in checked), f"{path}: not in --jaxtyping-packages"


def test_packages_exist_when_listed() -> None:
    missing = [name for name in PACKAGES if not (ROOT / name.replace(".", "/") / "__init__.py").is_file()]
    assert not missing, f"pyproject.toml lists packages that have no __init__.py: {missing}"


def test_packages_are_listed_when_they_hold_modules() -> None:
    found = {".".join(name.parent.parts) for name in list_modules(*ROOMS)}
    assert found <= set(PACKAGES), f"pyproject.toml does not list {sorted(found - set(PACKAGES))}"


def test_dependencies_are_declared_and_pinned_when_imported() -> None:
    distribution = {"PIL": "pillow", "mpl_toolkits": "matplotlib"}
    extras = PROJECT["project"]["optional-dependencies"]
    base, train = (
        {re.split(r"[^\w-]", line)[0].lower() for line in lines}
        for lines in (PROJECT["project"]["dependencies"], extras["train"] + extras["peft"] + extras["heic"])
    )
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for name in list_modules(*ROOMS):
        allowed = base if name.parts[0] in ("analysis", "figures") else base | train
        for line, module in find_imports(name):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in ROOMS:
                continue
            wanted = distribution.get(top, top).lower()
            assert wanted in allowed, f"{name}:{line}: {top} is not among pyproject.toml's dependencies"
            assert wanted in pins | {"torch"}, f"{name}:{line}: constraints.txt pins no {wanted}"


# Names, docstrings, words.


def test_names_are_not_drawers() -> None:
    wrong = [name for path in list_files() if DRAWERS & set((name := path.relative_to(ROOT)).with_suffix("").parts)]
    assert not wrong, f"call a file by its one idea: {[str(name) for name in wrong]}"


def test_public_names_have_docstrings() -> None:
    missing = []
    for name in list_modules(*ROOMS, "benchmarks", "tools"):
        tree = ast.parse((ROOT / name).read_text())
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        silent = [node for node in [tree, *public] if not ast.get_docstring(node)]
        missing += [f"{name}: {getattr(node, 'name', 'the module')}" for node in silent]
    assert not missing, "no docstring:\n" + "\n".join(missing)


def test_forbidden_words_are_absent() -> None:
    found = []
    for path in list_files():
        content = path.read_bytes()
        if b"\0" in content[:4096] or path.suffix in {".safetensors", ".png", ".pdf", ".parquet"}:
            continue
        text = content.decode(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert not found, "\n".join(found)


# Documents.


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "docs/results/README.md",
    "docs/pilot/README.md",
]


def test_readme_lists_every_folder_and_stays_short() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^## Folders\n.*?```\n(.*?)```", text, re.S | re.M)
    assert block, "README.md has no list under '## Folders'"
    named = {line.split()[0] for line in block[1].splitlines()}
    folders = {f"{path.relative_to(ROOT).parts[0]}/" for path in list_files() if path.parent != ROOT}
    assert named == {name for name in folders if not name.startswith(".")}
    assert len(text.encode()) < 15_000, "options belong to --help, files to their first lines, the rest to docs/"


def test_figures_page_gives_a_command_for_every_figure() -> None:
    rows = [line for line in (ROOT / "docs" / "figures.md").read_text().splitlines() if line.startswith("| `figures/")]
    listed = {match[1] for line in rows if (match := re.match(r"\| `(figures/\w+\.py)`", line))}
    drawn = {name.as_posix() for name in list_modules("figures") if re.match(r"fig\d|picture", name.name)}
    assert drawn <= listed, f"docs/figures.md has no row for {sorted(drawn - listed)}"
    for line in rows:
        assert re.search(r"`(python sweeps/\w+\.py|make \w+)", line), f"no command: {line}"


def test_documents_name_files_that_exist() -> None:
    rooms = "|".join([*ROOMS, "benchmarks", "tools", "docs", "tests"])
    absent = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        named = {word for span in spans for word in re.findall(rf"(?<![\w./-])(?:{rooms})/[\w./-]*(?![\w./<-])", span)}
        links = {(ROOT / document).parent / link for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)}
        places = links | {ROOT / name.rstrip(".") for name in named if document != "docs/reliability.md"}
        absent += [f"{document}: {place}" for place in sorted(places) if not place.exists()]
    assert not absent, "documents name what is not there:\n" + "\n".join(absent)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_make_targets_that_exist(document: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    code = "\n".join(re.findall(r"`[^`]*`", (ROOT / document).read_text()))
    named = set(re.findall(r"\bmake ([a-z]+)\b(?=[`\s])", code))
    assert named <= targets, f"{document} names make targets that are not there: {sorted(named - targets)}"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_flags_that_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help"}
    assert named <= offered(), f"{document} names flags that no program has: {sorted(named - offered())}"


@functools.cache
def offered() -> set[str]:
    """Every flag that a program's `--help` shows."""
    programs = (["sweeps/lr_robustness.py"], ["-m", "figures"], ["-m", "training.export"])
    shown = [run_warm([*program, "--help"], ROOT, os.environ).stdout for program in programs]
    return {flag for text in shown for flag in re.findall(r"--[a-z][a-z-]+", text)}


def test_no_test_ends_because_a_machine_is_busy() -> None:
    """A wait that ends a test is `HANG_S` long; three that end nothing are shorter."""
    limits = re.compile(r"(timeout=\d|wait_s=[1-9]|monotonic\(\) \+ \d).*")
    found = {
        f"{path.name}: {line.strip()}" for path in (ROOT / "tests").glob("*.py") for line in path.read_text().splitlines()
        if limits.search(line) and "limits.search" not in line and "re.compile" not in line
    }  # fmt: skip
    assert {line.split(":")[0] for line in found} == {"test_claims.py", "test_faults.py", "test_local_cluster.py"}, (
        found
    )
    assert len(found) == 3, found
