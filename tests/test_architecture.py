"""The house rules that no reviewer should have to remember, read from the source itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ka_ray

PACKAGE = Path(ka_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 40, 250
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "engine"}

PATHS = {"uris", "files", "copies"}
"""What makes a URI as good as a local path."""

BELOW: dict[str, set[str]] = {
    "errors": set(),
    "uris": {"errors"},
    "files": {"errors", "uris"},
    "copies": {"files"},
    "metrics": set(),
    "config": {"errors", "uris", "files"},
    "features": {"errors", "config"} | PATHS,
    "images": {"errors", "config"} | PATHS,
    "amalgamation": {"errors", "config", "metrics", "features"} | PATHS,
    "teachers": {"errors", "config", "metrics", "features"} | PATHS,
    "student": {"errors", "config", "metrics", "features", "images", "amalgamation", "teachers"} | PATHS,
    "plan": {"errors", "config", "metrics", "features", "amalgamation", "teachers", "student"},
}
"""Part of the package -> the parts that it may import. `distributed` and `tracking` see all of these."""

BELOW["training"] = set(BELOW)
BELOW["distributed"] = set(BELOW)
BELOW["tracking"] = set(BELOW) - {"distributed"}
BELOW["figures"] = {"files"}  # figures are drawn from plain mappings: no other part is needed, none draws

ABOVE: dict[str, set[str]] = {
    "markdown": {"report"},
    "report": {"features", "files", "markdown", "uris"},
    "comparison": {"features", "files", "markdown", "metrics"},
    "output": {"config", "errors", "features", "files", "tracking"},
    "job": {"config", "errors"},
    "checks": {"config", "errors", "split"},
    "spectrum": {"features", "files", "markdown"},
    "split": {"config", "errors", "images"},
    "console": {"report"},
    "display": {"training"},
    "staging": {"errors"},
    "following": {"display", "distributed", "errors"},
    "extension": {"config", "errors", "output", "plan", "teachers", "training", "uris"},
    "sweep": {"config", "errors", "features", "files", "markdown"},
    "ways": {"amalgamation", "comparison", "errors"},
    "run": {"config", "display", "distributed", "output", "tracking", "training"},
}
"""The same for modules beside those parts; ``markdown`` and ``console`` use ``report``'s types alone."""

COMMANDS = {"api", "cli", "comparing", "measuring", "pipeline", "searching", "submitting", "teaching"}
"""What a user calls. Nothing below them imports them; they may import everything but the command line."""

TOP = {"", "__main__", "passes", "publish", "steps", *COMMANDS}


def module_name(path: Path) -> str:
    """The dotted name inside the package: ``features.store``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its absolute name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(path: Path, package: str) -> list[str]:
    return [name for name in imports(path) if name.split(".")[0] == package]


def used_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports from."""
    return {name.split(".")[1] for name in imports_of(path, "ka_ray")}


def in_part(path: Path, part: str) -> bool:
    return path.relative_to(PACKAGE).parts[0] == part


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


every_file = pytest.mark.parametrize("path", FILES, ids=identify)


@every_file
def test_ray_is_imported_in_distributed_alone(path):
    assert in_part(path, "distributed") or imports_of(path, "ray") == []


@every_file
def test_mlflow_is_imported_in_one_file_alone(path):
    assert module_name(path) == "tracking.mlflow" or imports_of(path, "mlflow") == []


@every_file
@pytest.mark.parametrize("heavy", ["torch", "torchvision", "ray", "numpy"])
def test_the_config_imports_nothing_heavy(path, heavy):
    assert not in_part(path, "config") or imports_of(path, heavy) == []


@every_file
def test_imports_point_down(path):
    own = module_name(path).split(".")[0]
    used = used_parts(path)
    if own in TOP:
        assert own in {"", "cli", "__main__"} or not used & (COMMANDS | {"cli"})
        return
    allowed = BELOW | ABOVE
    assert own in allowed, f"say what {own} may import, in BELOW or ABOVE"
    assert used <= allowed[own] | {own}


def test_the_reports_types_alone_are_imported_by_what_writes_them():
    assert loaded_after("import ka_ray.markdown", ("ka_ray.report",)) == []


def test_no_figure_is_drawn_below_the_commands():
    drawing = {
        module_name(path) for path in FILES if used_parts(path) & {"figures"} and not in_part(path, "figures")
    }
    assert drawing == {"comparing", "measuring", "publish", "searching"}


def test_every_part_that_is_named_here_is_there():
    parts = {module_name(path).split(".")[0] for path in FILES}
    assert BELOW.keys() | ABOVE.keys() | TOP - {"__main__"} == parts - {"__main__"}


@every_file
def test_no_file_has_a_vague_name(path):
    assert not {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts} & VAGUE


@every_file
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@every_file
def test_functions_are_short(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


HEAVY = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "sklearn", "matplotlib")


def loaded_after(statement: str, modules: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of some modules (the heavy ones) a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*(m for m in {modules} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_is_light():
    assert loaded_after("import ka_ray") == []


def test_a_config_can_be_loaded_without_anything_heavy():
    assert loaded_after("import ka_ray; ka_ray.Config; ka_ray.InputError") == []


def test_figures_load_matplotlib_when_the_first_one_is_drawn():
    assert loaded_after("import ka_ray.figures") == []


def test_every_public_name_is_there():
    assert ka_ray.__all__ == sorted(ka_ray.__all__)
    for name in ka_ray.__all__:
        assert getattr(ka_ray, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ka_ray.nothing_of_the_kind
