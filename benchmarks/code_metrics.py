"""Measure the layout and the documentation of a Python package, today or at any git revision.

    python benchmarks/code_metrics.py                                      # the files as they are now
    python benchmarks/code_metrics.py --revision 8175c28 --revision HEAD   # before and after, side by side
    python benchmarks/code_metrics.py --list                               # also every incomplete docstring

Only the standard library is used, and the measured code is parsed but never imported. What the figures mean:

files at the root
    ``*.py`` files directly in the package folder, ``__init__.py`` included.
import circles
    Groups of modules that all reach each other by imports, inside functions too. Imports under
    ``if TYPE_CHECKING:`` count only in the row "with type-only imports". The exact rules are in
    `import_graph.py`.
folder circles
    The same between the parts of the package: the folders at its root, and the single files there.
longest function, longest file
    In lines, with docstrings, comments and blank lines; a function is measured from ``def`` to its end.
complete docstrings
    Share of the public modules, classes, functions and methods whose docstring exists and has a line for each
    parameter and field, if there are two or more. The exact rules are in `docstring_rules.py`. Tests inside
    the package do not count.
comments per 100 lines
    Comments (each line of its own, or behind code) per 100 lines that are neither blank nor part of a
    docstring. Comments without a word, shebangs and those that only instruct tools (``type: ignore``,
    ``noqa``, ``pragma``, ``fmt``, ...) do not count; a reason behind them (``# noqa: B023  # why``) does.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import tarfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from docstring_rules import Definition, Function, definitions, described_types, is_string
from import_graph import Module, circles, folder_graph, import_graph, imported_module, make_module

TOOL_COMMENT = re.compile(r"!|\s*(type: ?ignore|noqa|ruff:|mypy:|pyright:|pragma:|pylint:|fmt:|isort:|-\*-)")


def read_folder(package: Path) -> list[Module]:
    """Read every Python file of a package folder."""
    files = {PurePosixPath(file.relative_to(package)): file for file in package.rglob("*.py")}
    return [make_module(package.name, path, files[path].read_text("utf-8")) for path in sorted(files)]


def read_revision(package: Path, revision: str) -> list[Module]:
    """Read every Python file that a package folder had at a git revision.

    Args:
        package: The folder; only the folder around it has to exist today, inside a git repository.
        revision: Whatever git resolves to a commit: a hash, a branch, a tag.
    """
    command = ["git", "archive", "--format=tar", revision, "--", package.name]
    archive = subprocess.run(command, cwd=package.parent, stdout=subprocess.PIPE, check=True).stdout
    texts: dict[PurePosixPath, str] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(".py") else None
            if content is not None:
                texts[PurePosixPath(member.name).relative_to(package.name)] = content.read().decode("utf-8")
    return [make_module(package.name, path, texts[path]) for path in sorted(texts)]


def longest_function(modules: list[Module]) -> tuple[int, str]:
    """Return the number of lines of the longest function, and where it is."""
    lengths = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module.path}: {node.name}")
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, Function)
    ]
    return max(lengths, key=lambda length: length[0], default=(0, ""))


def longest_file(modules: list[Module]) -> tuple[int, str]:
    """Return the number of lines of the longest file, and its path."""
    lengths = [(len(module.text.splitlines()), str(module.path)) for module in modules]
    return max(lengths, key=lambda length: length[0], default=(0, ""))


def count_comments(module: Module) -> tuple[int, int]:
    """Return the number of comments, and of lines that are neither blank nor part of a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    # A comment can hold an instruction and its reason, each behind a `#`.
    texts = [[part for part in comment.split("#")[1:] if re.search(r"\w", part)] for comment in comments]
    num_comments = sum(any(not TOOL_COMMENT.match(part) for part in parts) for parts in texts)
    strings = [node for node in ast.walk(module.tree) if isinstance(node, ast.Expr) and is_string(node)]
    left_out = {line for node in strings for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = enumerate(module.text.splitlines(), start=1)
    return num_comments, sum(bool(line.strip()) and number not in left_out for number, line in lines)


def check_docstrings(modules: list[Module]) -> Iterator[tuple[Module, Definition]]:
    """Yield every public definition outside tests, with its module."""
    named = {module.name: described_types(module.tree) for module in modules}
    for module in modules:
        parts = module.path.with_suffix("").parts
        private = any(part.startswith("_") and part not in {"__init__", "__main__"} for part in parts)
        if private or "tests" in parts or parts[-1].startswith("test_") or parts[-1] == "conftest":
            continue
        imports = [node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom)]
        visible = named[module.name] | {
            alias.asname or alias.name
            for node in imports
            for alias in node.names
            if alias.name in named.get(imported_module(node, module), ())
        }
        for definition in definitions(module.tree, visible):
            yield module, definition


def incomplete_per_part(checked: list[tuple[Module, Definition]]) -> dict[str, tuple[int, int]]:
    """Count the incomplete and all public definitions of each folder, and of each file at the root."""
    every = Counter(module.path.parts[0] for module, _ in checked)
    lacking = Counter(module.path.parts[0] for module, definition in checked if definition.missing)
    return {part: (lacking[part], every[part]) for part in sorted(every)}


def measure(modules: list[Module]) -> dict[str, Any]:
    """Return all figures of a package; the keys are those of `--json`."""
    graph, graph_with_types = import_graph(modules, False), import_graph(modules, True)
    checked = list(check_docstrings(modules))
    comments, lines = (sum(column) for column in zip(*map(count_comments, modules), strict=True))
    return {
        "files": len(modules),
        "files_at_root": sum(len(module.path.parts) == 1 for module in modules),
        "circles": circles(graph),
        "circles_with_type_only": circles(graph_with_types),
        "folder_circles": circles(folder_graph(graph)),
        "folder_circles_with_type_only": circles(folder_graph(graph_with_types)),
        "longest_function": longest_function(modules),
        "longest_file": longest_file(modules),
        "public_definitions": len(checked),
        "with_docstring": sum(definition.missing != "no docstring" for _, definition in checked),
        "complete": sum(not definition.missing for _, definition in checked),
        "incomplete": [
            {"path": str(module.path), **asdict(definition)}
            for module, definition in checked
            if definition.missing
        ],
        "incomplete_per_part": incomplete_per_part(checked),
        "comments": comments,
        "code_lines": lines,
    }


def table_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table for one revision: what is measured, and the figure."""
    public, complete, present = (figures[key] for key in ("public_definitions", "complete", "with_docstring"))
    (function_lines, function), (file_lines, file) = figures["longest_function"], figures["longest_file"]
    return [
        ("files", str(figures["files"])),
        ("files at the root", str(figures["files_at_root"])),
        ("import circles", str(len(figures["circles"]))),
        ("  with type-only imports", str(len(figures["circles_with_type_only"]))),
        ("folder circles", str(len(figures["folder_circles"]))),
        ("  with type-only imports", str(len(figures["folder_circles_with_type_only"]))),
        ("longest function, lines", str(function_lines)),
        ("  which", function),
        ("longest file, lines", str(file_lines)),
        ("  which", file),
        ("public definitions", str(public)),
        ("  with a docstring", f"{present / public:.1%} ({present})"),
        ("  with a complete docstring", f"{complete / public:.1%} ({complete})"),
        ("comments per 100 lines", f"{100 * figures['comments'] / max(figures['code_lines'], 1):.2f}"),
        ("  comments", str(figures["comments"])),
        ("  lines of code", str(figures["code_lines"])),
    ]


def print_table(measured: dict[str, dict[str, Any]]) -> None:
    """Print a column per revision, then the members of every circle."""
    columns = [table_rows(figures) for figures in measured.values()]
    names = [name for name, _ in columns[0]]
    rows = [
        ["", *measured],
        *([name, *(figure for _, figure in row)] for name, *row in zip(names, *columns, strict=True)),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for label, figures in measured.items():
        for key in (key for key in figures if "circles" in key):
            for circle in figures[key]:
                print(f"{label}: {key.replace('_', ' ')}: {', '.join(circle)}")


def print_incomplete(measured: dict[str, dict[str, Any]]) -> None:
    """Print every incomplete docstring, and how many there are in each top-level part of the package."""
    for label, figures in measured.items():
        print(f"\n{label}: {len(figures['incomplete'])} incomplete docstrings")
        for one in figures["incomplete"]:
            print(f"  {one['path']}:{one['line']}: {one['name']}: {one['missing']}")
        print(f"\n{label}: incomplete docstrings in each part of the package")
        for part, (incomplete, public) in figures["incomplete_per_part"].items():
            print(f"  {incomplete:4d} of {public:4d}  {part}")


def main() -> None:
    """Measure each revision that was asked for, and print the table, the list or the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, default=Path(__file__).parents[1] / "ka_ray", metavar="DIR")
    parser.add_argument("--revision", action="append", metavar="REV", help="Git revision; may be repeated.")
    parser.add_argument("--list", action="store_true", help="Print every incomplete docstring as well.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object, revision -> figures.")
    arguments = parser.parse_args()
    package = arguments.package.resolve()
    try:
        read = {revision: read_revision(package, revision) for revision in arguments.revision or []}
    except subprocess.CalledProcessError:  # git has printed what is wrong
        parser.error(f"git cannot read {package.name} at one of the revisions {arguments.revision}")
    sources = read or {"now": read_folder(package)}
    if not all(sources.values()):
        parser.error(f"{package} holds no Python file")
    measured = {name: measure(modules) for name, modules in sources.items()}
    if arguments.json:
        print(json.dumps(measured, indent=2))
        return
    print_table(measured)
    if arguments.list:
        print_incomplete(measured)


if __name__ == "__main__":
    main()
