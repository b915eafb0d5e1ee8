"""Test the rules for the source of the package: which part may import which, names and lengths."""

import ast
import functools
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ka_ray

PACKAGE = Path(ka_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 40, 250
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "engine"}

MAY_IMPORT: dict[str, set[str]] = {
    "verbosity": set(),
    "stopwatch": set(),
    "errors": {"verbosity"},
    "sparse_counts": set(),
    "metrics": {"sparse_counts"},
    "disputes": {"sparse_counts"},
    "storage": {"errors"},
    "config": {"errors", "storage"},
    "numerics": {"errors", "storage"},
    "images": {"errors", "storage", "config", "numerics"},
    "features": {"errors", "storage", "config", "numerics"},
    "amalgamation": {"errors", "storage", "config", "numerics"},
    "gates": {"errors", "numerics", "amalgamation"},
    "teachers": {"errors", "storage", "config", "numerics", "images", "features"},
    "student": {"errors", "storage", "config", "numerics", "images", "features", "amalgamation", "teachers"},
    "training": {"errors", "storage", "numerics", "features", "stopwatch"},
}
"""For each part of the package, the parts that it may import."""

MAY_IMPORT["reports"] = {"errors", "storage", "metrics", "disputes", "sparse_counts"}
MAY_IMPORT["stages"] = {*MAY_IMPORT} - {"metrics", "disputes", "sparse_counts"}
MAY_IMPORT["tracking"] = {"errors", "storage", "config", "student"}
MAY_IMPORT["distributed"] = {*MAY_IMPORT} - {"stages", "tracking"}
MAY_IMPORT["terminal"] = {"errors", "verbosity", "storage", "reports", "training"}
MAY_IMPORT["formats"] = {"errors", "storage", "config", "student", "teachers"}
MAY_IMPORT["runs"] = {*MAY_IMPORT}
MAY_IMPORT["workflows"] = {*MAY_IMPORT}
MAY_IMPORT["submission"] = {"errors", "storage", "config", "distributed", "terminal", "runs"}

ROOT_MODULES = {
    *("", "__main__", "cli", "cli_models", "cli_student"),
    *("errors", "disputes", "metrics", "sparse_counts", "stopwatch", "verbosity"),
}
"""Modules outside of a folder. The package itself and the command line may import everything."""

MAY_IMPORT_RAY = {"distributed", "submission"}
MAY_IMPORT_FIGURES = {"workflows", "runs"}


def module_name(path: Path) -> str:
    """Return the dotted name of a file inside the package, such as ``features.store``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@functools.cache
def walk(path: Path) -> list[ast.AST]:
    """Return all nodes of the syntax tree of a file, which many tests read."""
    return list(ast.walk(ast.parse(path.read_text())))


def imported_names(path: Path) -> Iterator[str]:
    """Yield the absolute name of each module or object that a file imports, also inside of functions."""
    for node in walk(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_names_of_package(path: Path, package: str) -> list[str]:
    return [name for name in imported_names(path) if name.split(".")[0] == package]


def used_parts(path: Path) -> set[str]:
    """Return the parts of the package that a file imports from."""
    return {name.split(".")[1] for name in imported_names_of_package(path, "ka_ray")}


def in_part(path: Path, part: str) -> bool:
    return path.relative_to(PACKAGE).parts[0] == part


def relative_path(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def every_file(test: Callable[..., None]) -> Callable[..., None]:
    """Call a test for every file, and list the files that fail it.

    As tests of their own they would be 4,000, and take a quarter of a minute for nothing.
    """

    @functools.wraps(test)
    def test_all(**arguments: object) -> None:
        failed = {}
        for path in FILES:
            try:
                test(path=path, **arguments)
            except AssertionError as error:
                failed[relative_path(path)] = str(error)
        assert failed == {}

    signature = inspect.signature(test)
    others = [parameter for name, parameter in signature.parameters.items() if name != "path"]
    test_all.__signature__ = signature.replace(parameters=others)  # pytest looks up these arguments
    return test_all


def test_a_file_that_fails_is_listed():
    @every_file
    def check(path):
        assert path.name != "errors.py"

    with pytest.raises(AssertionError, match=r"errors\.py"):
        check()


@every_file
def test_ray_is_imported_only_by_distributed_and_submission(path):
    assert any(in_part(path, part) for part in MAY_IMPORT_RAY) or imported_names_of_package(path, "ray") == []


@every_file
def test_mlflow_is_imported_only_by_its_tracker(path):
    assert (
        module_name(path).startswith("tracking.mlflow.")
        or module_name(path) == "tracking.mlflow"
        or imported_names_of_package(path, "mlflow") == []
    )


@every_file
@pytest.mark.parametrize("heavy_package", ["torch", "torchvision", "ray", "numpy"])
def test_the_config_imports_no_heavy_package(path, heavy_package):
    assert not in_part(path, "config") or imported_names_of_package(path, heavy_package) == []


@every_file
def test_a_part_imports_only_the_parts_that_it_may_import(path):
    part = module_name(path).split(".")[0]
    if part in {"", "__main__", "cli", "cli_models", "cli_student"}:
        return
    assert part in MAY_IMPORT, f"add {part} and the parts that it may import to MAY_IMPORT"
    assert used_parts(path) <= MAY_IMPORT[part] | {part}


def test_the_allowed_imports_of_parts_have_no_cycle():
    list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError


def test_the_imports_of_modules_have_no_cycle():
    modules = {module_name(path): path for path in FILES}
    graph = {
        name: {used for used in used_modules(path, modules) if used != name} for name, path in modules.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


def used_modules(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file imports.

    In ``from ka_ray.a import b``, b is the module a.b or a name in the module a.
    """
    for name in imported_names_of_package(path, "ka_ray"):
        inner = name.removeprefix("ka_ray").removeprefix(".")
        yield inner if inner in modules else inner.rpartition(".")[0]


def test_figures_are_imported_only_by_workflows_and_runs():
    drawing = {
        path
        for path in FILES
        if any(name.startswith("ka_ray.reports.figures") for name in imported_names(path))
    }
    parts = {path.relative_to(PACKAGE).parts[0] for path in drawing}
    assert parts == MAY_IMPORT_FIGURES | {"reports"}
    assert {path.parent.name for path in drawing if in_part(path, "reports")} == {"figures"}


def test_may_import_lists_every_part():
    parts = {module_name(path).split(".")[0] for path in FILES}
    assert MAY_IMPORT.keys() | ROOT_MODULES - {"__main__"} == parts - {"__main__"}


def test_only_listed_modules_are_outside_of_a_folder():
    assert {path.stem.strip("_") for path in PACKAGE.glob("*.py")} <= {"init", "main", *ROOT_MODULES}


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
    assert not {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts} & VAGUE_NAMES


@every_file
def test_files_are_not_longer_than_the_limit(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@every_file
def test_functions_are_not_longer_than_the_limit(path):
    functions = [node for node in walk(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


HEAVY_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "sklearn", "matplotlib")


def modules_imported_after(statement: str, modules: tuple[str, ...] = HEAVY_PACKAGES) -> list[str]:
    """Return which of the given modules a new interpreter has imported after a statement."""
    code = f"import sys; {statement}; print(*(m for m in {modules} if m in sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return finished.stdout.split()


def test_importing_the_package_imports_no_heavy_package():
    assert modules_imported_after("import ka_ray") == []


def test_using_the_config_imports_no_heavy_package():
    assert modules_imported_after("import ka_ray; ka_ray.Config; ka_ray.InputError") == []


def test_modules_of_tasks_that_read_or_write_images_do_not_import_torch():
    """Importing torch would take seconds in each process of these tasks."""
    modules = "ka_ray.distributed.images, ka_ray.distributed.shard_writer"
    assert modules_imported_after(f"import {modules}", ("torch", "torchvision")) == []


def test_importing_figures_does_not_import_matplotlib():
    assert modules_imported_after("import ka_ray.reports.figures") == []


def test_all_is_sorted_and_every_name_in_it_exists():
    assert ka_ray.__all__ == sorted(ka_ray.__all__)
    for name in ka_ray.__all__:
        assert getattr(ka_ray, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ka_ray.nothing_of_the_kind
