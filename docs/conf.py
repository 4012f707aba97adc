"""The documentation site: README, CONTRIBUTING, CHANGELOG, docs/ and an API reference from docstrings. `make docs` builds it.

The repository is Sphinx's source folder, so a link that works on GitHub leads to the same file in the site.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "Plateau"
author = copyright = "The Plateau contributors"
root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/**", "training/pocket/MODEL_CARD.md"]
exclude_patterns = [".*", "build", "runs", "logs", "node_modules", "pocket_build", "tests"]
suppress_warnings = [
    "toc.not_included",  # tables of results are reached from the pages that name them
    "ref.python",  # several classes have an attribute of one name, which is no reference
    "myst.header",  # files of tables begin where the page that names them goes on
]
myst_heading_anchors = 3  # as on GitHub
highlight_language = "none"
autodoc_inherit_docstrings = False  # torch describes its own methods in another markup
napoleon_use_ivar = True
napoleon_attr_annotations = False  # their types stand beside the attributes already
napoleon_custom_sections = [("Options", "params_style")]  # of a method
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
toc_object_entries = False
html_theme = "furo"
html_title = "Plateau"
html_static_path = ["site.css"]
html_css_files = ["site.css"]

# The pages at the side; README itself has no such list, since GitHub would print it.
PAGES = {
    "Use": [
        f"docs/{name}" for name in ("figures", "judge", "options", "models", "text", "real_runs", "cluster", "api")
    ],
    "Methods": ["docs/methods", "docs/add_a_method", "docs/add_a_task", "docs/statistics"],
    "Results": ["docs/results/README", "docs/hira", "docs/pilot/README", "training/pocket/MODEL_CARD"],
    "Cost and reliability": [
        "docs/speed",
        "Packs, methods and HF PEFT on a CPU <docs/benchmarks>",
        "The shapes of Stable Diffusion 1.5 <docs/gpu>",
        "docs/scale",
        "docs/reliability",
    ],
    "Project": ["CONTRIBUTING", "CHANGELOG"],
    "API reference": [
        f"docs/reference/{name}" for name in ("adapters", "training", "slurm", "analysis", "figures", "sweeps")
    ],
}


def add_pages(app: Any, name: str, source: list[str]) -> None:
    """Append the pages at the side to README's text."""
    if name == root_doc:
        for caption, pages in PAGES.items():
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def write_reference(folder: Path) -> None:
    """Write a page for each package: a table of its modules, then each module; packages inside it have pages of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for top in (Path(page).name for page in PAGES["API reference"]):
        for path in (ROOT / top).rglob("__init__.py"):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            modules = {f"{package}.{file.stem}": read_opening(file) for file in sorted(path.parent.glob("[!_]*.py"))}
            rows = [f"   * - :mod:`{name}`\n     - {' '.join(text.split())}" for name, text in modules.items()]
            table = ["", ".. list-table::", "", *rows] if rows else []
            inside = (
                ["", ".. toctree::", "   :glob:", "", f"   {package}.*"]
                if any(path.parent.glob("*/__init__.py"))
                else []
            )
            parts = [
                line
                for name in [package, *modules]
                for line in ("", name, "-" * len(name), "", f".. automodule:: {name}")
            ]
            lines = [package, "=" * len(package), "", read_opening(path), *inside, *table, *parts, ""]
            (folder / f"{package}.rst").write_text("\n".join(lines), encoding="utf-8")


def read_opening(path: Path) -> str:
    """What a module is for: the first paragraph of its docstring."""
    return to_rst((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0])


SPANS = re.compile(r"(:\w+:`[^`]+`|``[^`]+``|`[^`]+`)")


def to_rst(text: str) -> str:
    """Docstrings as reStructuredText: `code` is code, indented blocks are literal, and nothing else is markup."""
    parts = SPANS.split(text)
    for n, part in enumerate(parts):
        if n % 2 == 0:
            parts[n] = re.sub(r"(?<=\w)_(?!\w)|[*|\\]", r"\\\g<0>", part)
        elif part.startswith("`"):
            parts[n] = f"``{part.strip('`')}``" + ("\\ " if parts[n + 1][:1].isalnum() else "")
    return "".join(parts)


def show_plain(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring, whose sections are Google's, into reStructuredText before napoleon reads the sections."""
    shown, section, literal = [], False, False
    for line in to_rst("\n".join(lines)).split("\n"):
        if line and not line[0].isspace():
            section, literal = bool(re.fullmatch(r"(Args|Attributes|Options|Raises|Returns|Yields):", line)), False
        elif line.startswith("    ") and not section and not literal and (not shown or not shown[-1]):
            shown, literal = [*shown, "::", ""], True
        shown.append(re.sub(r"\\(?=[*|\\_])|``", "", line) if literal else line)
    lines[:] = shown


def copy_index(app: Any, exception: Exception | None) -> None:
    """README is the first page, under the name that servers look for."""
    if exception is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    write_reference(ROOT / "docs" / "reference")
    app.connect("source-read", add_pages)
    app.connect("autodoc-process-docstring", show_plain, priority=400)
    app.connect("build-finished", copy_index)
