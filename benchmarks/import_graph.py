"""Find the modules of a package that import each other in a circle; `code_metrics.py` counts them.

A circle is a group of more than one module in which every module reaches every other by imports (a strongly
connected component). The rules for an import:

- Imports anywhere in a file count, also those inside functions. Imports under ``if TYPE_CHECKING:`` never
  run, so they can be left out.
- ``from p.a import b`` is an import of the module ``p.a.b`` if that exists, and otherwise of ``p.a``. If
  ``p.a`` is a folder, it stands for its ``__init__``.
- Python also runs the ``__init__`` of every folder above an imported module. These imports do not count.
- Imports of a name in a string (``importlib.import_module``) are not found.
"""

import ast
from dataclasses import dataclass
from pathlib import PurePosixPath

Graph = dict[str, set[str]]
"""Name of a module -> the names of the modules that it imports."""


@dataclass(frozen=True)
class Module:
    """One source file of the package.

    Attributes:
        path: Its path, relative to the package folder.
        name: Its dotted name with the package in front; a folder's name for its ``__init__.py``.
        text: Its content.
        tree: Its content, parsed.
    """

    path: PurePosixPath
    name: str
    text: str
    tree: ast.Module


def make_module(package: str, path: PurePosixPath, text: str) -> Module:
    """Name and parse one source file.

    Args:
        package: Name of the package.
        path: Path of the file, relative to the package folder.
        text: Content of the file.
    """
    parts = [part for part in path.with_suffix("").parts if part != "__init__"]
    return Module(path, ".".join([package, *parts]), text, ast.parse(text, str(path)))


def type_only_nodes(tree: ast.Module) -> set[ast.AST]:
    """Return all nodes under ``if TYPE_CHECKING:``."""
    guards = (node for node in ast.walk(tree) if isinstance(node, ast.If))
    bodies = (guard.body for guard in guards if ast.unparse(guard.test).split(".")[-1] == "TYPE_CHECKING")
    return {node for body in bodies for statement in body for node in ast.walk(statement)}


def imported_module(node: ast.ImportFrom, module: Module) -> str:
    """Return the absolute name of the module that ``from ... import`` names, which may be relative."""
    if node.level == 0:
        return node.module or ""
    folder = module.name.split(".")
    if module.path.name != "__init__.py":
        folder.pop()  # a relative import starts at the folder; only an `__init__` already has its name
    return ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])


def import_graph(modules: list[Module], with_type_only: bool) -> Graph:
    """Return which modules of the package import which.

    Args:
        modules: All modules of the package.
        with_type_only: Whether imports under ``if TYPE_CHECKING:`` count.
    """
    graph: Graph = {module.name: set() for module in modules}
    for module in modules:
        skipped = set() if with_type_only else type_only_nodes(module.tree)
        for node in ast.walk(module.tree):
            if node in skipped:
                continue
            if isinstance(node, ast.Import):
                graph[module.name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = imported_module(node, module)
                inner = [f"{base}.{alias.name}" for alias in node.names]
                graph[module.name] |= {name if name in graph else base for name in inner}
    return {name: {target for target in used if target in graph} for name, used in graph.items()}


def folder_graph(graph: Graph) -> Graph:
    """Merge the modules of each folder at the package's root into one node; a file at the root stays one."""
    # The package itself is its `__init__`, a file at the root.
    part = {name: [*name.split("."), "__init__"][1] for name in graph}
    merged: Graph = {name: set() for name in part.values()}
    for name, targets in graph.items():
        merged[part[name]] |= {part[target] for target in targets}
    return merged


def reachable(graph: Graph, start: str) -> set[str]:
    """Return all nodes that one or more steps lead to; ``start`` itself only if it is in a circle."""
    found, waiting = set[str](), [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that can all reach each other, if larger than one."""
    reach = {node: reachable(graph, node) for node in graph}
    groups = {frozenset(other for other in reach[node] if node in reach[other]) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)
