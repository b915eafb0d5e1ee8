"""The house rules that no reviewer should have to remember, read from the source itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ka_ray

PACKAGE = Path(ka_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 40, 250
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "engine"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "metrics": set(),
    "storage": {"errors"},
    "config": {"errors", "storage"},
    "numerics": {"errors", "storage"},
    "images": {"errors", "storage", "config", "numerics"},
    "features": {"errors", "storage", "config", "numerics"},
    "amalgamation": {"errors", "storage", "config", "numerics"},
    "teachers": {"errors", "storage", "config", "numerics", "features"},
    "student": {"errors", "storage", "config", "numerics", "features", "amalgamation", "teachers"},
    "training": {"errors", "storage", "numerics", "features"},
}
"""Part of the package -> the parts that it may import, from the lowest floor to the highest."""

MAY_IMPORT["reports"] = {"errors", "storage", "metrics"}
MAY_IMPORT["stages"] = {*MAY_IMPORT} - {"metrics"}
MAY_IMPORT["tracking"] = {"errors", "storage", "config", "student"}
MAY_IMPORT["distributed"] = {*MAY_IMPORT} - {"stages", "tracking"}
MAY_IMPORT["terminal"] = {"reports", "training"}
MAY_IMPORT["runs"] = {*MAY_IMPORT}
MAY_IMPORT["workflows"] = {*MAY_IMPORT}
MAY_IMPORT["submission"] = {"errors", "storage", "config", "distributed", "terminal", "runs"}

ROOT = {"", "__main__", "cli", "errors", "metrics"}
"""The modules that lie in no folder; the package itself and the command line may import everything."""

MAY_IMPORT_RAY = {"distributed", "submission"}
MAY_DRAW = {"workflows", "runs"}


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
def test_ray_is_imported_only_where_it_is_adapted(path):
    assert any(in_part(path, part) for part in MAY_IMPORT_RAY) or imports_of(path, "ray") == []


@every_file
def test_mlflow_is_imported_in_one_file_alone(path):
    assert module_name(path) == "tracking.mlflow" or imports_of(path, "mlflow") == []


@every_file
@pytest.mark.parametrize("heavy", ["torch", "torchvision", "ray", "numpy"])
def test_the_config_imports_nothing_heavy(path, heavy):
    assert not in_part(path, "config") or imports_of(path, heavy) == []


@every_file
def test_imports_point_down(path):
    part = module_name(path).split(".")[0]
    if part in {"", "__main__", "cli"}:
        return
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what {part} may import"
    assert used_parts(path) <= MAY_IMPORT[part] | {part}


def test_no_floor_lies_above_itself():
    list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError


def test_no_modules_import_each_other():
    modules = {module_name(path): path for path in FILES}
    graph = {
        name: {one for one in used_modules(path, modules) if one != name} for name, path in modules.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def used_modules(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports: ``from ka_ray.a import b`` may name the module a.b."""
    for name in imports_of(path, "ka_ray"):
        inner = name.removeprefix("ka_ray").removeprefix(".")
        yield inner if inner in modules else inner.rpartition(".")[0]


def test_figures_are_drawn_only_above_the_reports():
    drawing = {
        path for path in FILES if any(name.startswith("ka_ray.reports.figures") for name in imports(path))
    }
    parts = {path.relative_to(PACKAGE).parts[0] for path in drawing}
    assert parts == MAY_DRAW | {"reports"}
    assert {path.parent.name for path in drawing if in_part(path, "reports")} == {"figures"}


def test_every_part_has_its_floor():
    parts = {module_name(path).split(".")[0] for path in FILES}
    assert MAY_IMPORT.keys() | ROOT - {"__main__"} == parts - {"__main__"}


def test_few_modules_lie_at_the_root():
    assert {path.stem.strip("_") for path in PACKAGE.glob("*.py")} <= {"init", "main", *ROOT}


def test_git_ignores_no_source_file():
    """A pattern such as ``runs/`` would also leave ``ka_ray/runs`` out of commits, wheels and jobs."""
    ignored = subprocess.run(
        ["git", "check-ignore", *map(str, FILES)], cwd=PACKAGE, capture_output=True, text=True
    )
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert ignored.stdout.split() == []


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


def test_tasks_that_read_or_write_images_start_without_torch():
    """Importing torch takes seconds in each of their processes."""
    modules = "ka_ray.distributed.images, ka_ray.distributed.shard_writer"
    assert loaded_after(f"import {modules}", ("torch", "torchvision")) == []


def test_figures_load_matplotlib_when_the_first_one_is_drawn():
    assert loaded_after("import ka_ray.reports.figures") == []


def test_every_public_name_is_there():
    assert ka_ray.__all__ == sorted(ka_ray.__all__)
    for name in ka_ray.__all__:
        assert getattr(ka_ray, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ka_ray.nothing_of_the_kind
