"""Test `benchmarks/code_metrics.py` on small packages whose metrics are counted by hand.

A circle is a group of modules, or of folders, that import each other.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "code_metrics.py"


def run_script(package: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--package", str(package), *options]
    return subprocess.run(command, capture_output=True, text=True)


def write_files(package: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.fixture
def measure(tmp_path: Path) -> Callable[[dict[str, str]], dict[str, Any]]:
    """Return a function that writes a package ``p`` and returns its metrics."""

    def measure(files: dict[str, str]) -> dict[str, Any]:
        write_files(tmp_path / "p", files)
        finished = run_script(tmp_path / "p", "--json")
        assert finished.returncode == 0, finished.stderr
        metrics: dict[str, Any] = json.loads(finished.stdout)["now"]
        return metrics

    return measure


def test_files_are_counted_at_the_root_and_below(measure):
    metrics = measure(
        {"__init__.py": "", "cli.py": "", "a/__init__.py": "", "a/b/c.py": "", "a/text.txt": ""}
    )
    assert (metrics["files"], metrics["files_at_root"]) == (4, 2)


def test_two_modules_that_import_each_other_are_one_circle(measure):
    metrics = measure(
        {"one.py": "from p.two import f\n", "two.py": "import p.one\n", "three.py": "import p.two\n"}
    )
    assert metrics["circles"] == metrics["circles_with_type_only"] == [["p.one", "p.two"]]
    assert metrics["folder_circles"] == [["one", "two"]]


def test_an_import_inside_a_function_counts_for_circles(measure):
    import_in_function = "def f():\n    from p import c\n"
    metrics = measure({"a.py": "import p.b\n", "b.py": import_in_function, "c.py": "from p import a\n"})
    assert metrics["circles"] == [["p.a", "p.b", "p.c"]]


def test_a_circle_of_type_only_imports_is_counted_separately(measure):
    guarded = """
        import typing
        if typing.TYPE_CHECKING:
            from p.b.two import Two
    """
    metrics = measure({"a/one.py": guarded, "b/two.py": "from p.a.one import One\n"})
    assert metrics["circles"] == metrics["folder_circles"] == []
    assert metrics["circles_with_type_only"] == [["p.a.one", "p.b.two"]]
    assert metrics["folder_circles_with_type_only"] == [["a", "b"]]


def test_an_import_in_the_else_branch_of_type_checking_is_not_type_only(measure):
    guarded = """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            pass
        else:
            import p.two
    """
    metrics = measure({"one.py": guarded, "two.py": "import p.one\n"})
    assert metrics["circles"] == [["p.one", "p.two"]]


def test_folders_can_form_a_circle_although_their_modules_do_not(measure):
    metrics = measure({"a/x.py": "import p.b.x\n", "b/x.py": "", "b/y.py": "import p.a.y\n", "a/y.py": ""})
    assert metrics["circles"] == []
    assert metrics["folder_circles"] == [["a", "b"]]


def test_importing_a_name_from_a_folder_imports_its_init_but_importing_a_module_does_not(measure):
    init = {"a/__init__.py": "from p.a.x import f\n"}
    by_module = measure({**init, "a/x.py": "from p.a import y\n", "a/y.py": ""})
    assert by_module["circles"] == []
    by_name = measure({**init, "a/x.py": "from p.a import name\n"})
    assert by_name["circles"] == [["p.a", "p.a.x"]]
    assert by_name["folder_circles"] == []


def test_relative_imports_are_followed(measure):
    metrics = measure(
        {
            "a/__init__.py": "from .x import f\n",
            "a/x.py": "from ..b import g\n",
            "b/__init__.py": "from . import y\n",
            "b/y.py": "from ..a import x\n",
        }
    )
    assert metrics["circles"] == [["p.a.x", "p.b", "p.b.y"]]
    assert metrics["folder_circles"] == [["a", "b"]]


def test_the_longest_function_and_file_are_given_with_their_lines_and_names(measure):
    long = """\
        class A:
            @property
            def long(self):
                \"\"\"Docstring.\"\"\"

                return 1


        def short(): ...
    """
    metrics = measure({"long.py": long, "other.py": "x = 1\n" * 10})
    assert metrics["longest_function"] == [4, "long.py: long"]
    assert metrics["longest_file"] == [10, "other.py"]


def test_comments_and_lines_are_counted(measure):
    text = '''\
        #!/usr/bin/env python
        """A docstring
        # that looks like a comment."""

        # A comment of
        # two lines.
        import os  # behind code
        import re  # noqa: F401
        x: int = ""  # type: ignore[assignment]
        y: int = ""  # type: ignore[assignment]  # but with a reason, see #13
        # ---------
        text = """
        # no comment

        """
        """A string below a name."""
    '''
    metrics = measure({"a.py": text, "b.py": "x = 1  # more\n"})
    # Neither blank nor docstring: shebang, 2 comments, 4 statements, ruler, 3 lines of `text`; `x = 1`.
    assert metrics["code_lines"] == 11 + 1
    assert metrics["comments"] == 4 + 1


FUNCTIONS = '''\
    """A module."""
    from typing import Annotated, overload
    from p.types import Numbers, Path


    def complete(first, *rest: int, key=None, **options):
        """Do it.

        Args:
            first (int, optional): One.
            *rest: More, which is said
                on: two lines.
            key, options:
                On the next line.

        Returns:
            Nothing.
        """


    def incomplete(first, second, third):
        """Do it with ``second``.

        Args:
            first: One.
            third:

        Raises:
            second: Here it is no argument.
        """


    def one_parameter(x):
        """Do it to x."""


    def undocumented(): ...


    def command(path: Path, option: Annotated[int, Option(help="An option.")]):
        """Do it as typer does."""


    def alias_without_text(path: Path, number: Numbers):
        """Do it with a number."""


    @overload
    def over(x: int) -> int: ...
    def over(x):
        """Do it to x."""

        def inner(a, b): ...


    def _private(a, b): ...
'''
TYPES = '"""Types."""\nPath = Annotated[str, Argument(help="A path.")]\nNumbers = Annotated[int, Gt(0)]\n'


def test_incomplete_docstrings_of_functions_are_listed_with_what_is_missing(measure):
    metrics = measure({"f.py": FUNCTIONS, "types.py": TYPES})
    missing = {entry["name"]: entry["missing"] for entry in metrics["incomplete"]}
    assert missing == {
        "incomplete": "no line on second, third",
        "undocumented": "no docstring",
        "alias_without_text": "no line on number",
    }
    assert {entry["line"] for entry in metrics["incomplete"]} == {21, 37, 44}
    # Two modules, and complete, incomplete, one_parameter, undocumented, command, alias_..., over.
    assert (metrics["public_definitions"], metrics["with_docstring"], metrics["complete"]) == (9, 8, 6)
    assert metrics["incomplete_per_part"] == {"f.py": [3, 8], "types.py": [0, 1]}


CLASSES = '''\
    """A module."""
    @dataclass
    class Complete:
        """A record.

        Attributes:
            a: One.
        """
        a: int
        b: int = 0
        """Two."""
        c: int = Field(0, description="Three.")
        d: ClassVar[int] = 0
        _e: int = 0
        F = 1

    class Incomplete:
        """``a`` and ``b`` are only mentioned."""
        a: int
        b: int = Field(0, ge=0)

    class OneField:
        """Holds a number."""
        number: int

    class WithInit:
        """A thing.

        Args:
            x: One.
        """
        def __init__(self, x, y):
            """Make it.

            Args:
                y: Two.
            """

        @property
        def size(self):
            """Its size."""

        @size.setter
        def size(self, value): ...

        @override
        def inherited(self, a, b): ...

        @staticmethod
        def of(a, b):
            """Make it of two."""

        class Inner: ...

    class BadInit:
        """A thing."""
        def __init__(self, x, y): ...

    class _Private:
        def public(self): ...
'''


def test_incomplete_docstrings_of_classes_are_listed_with_what_is_missing(measure):
    metrics = measure({"a/c.py": CLASSES})
    assert {entry["name"]: entry["missing"] for entry in metrics["incomplete"]} == {
        "Incomplete": "no line on a, b",
        "WithInit.of": "no line on a, b",
        "WithInit.Inner": "no docstring",
        "BadInit": "no line on x, y",
    }
    # The module, five classes, and size, of and Inner in WithInit.
    assert (metrics["public_definitions"], metrics["complete"]) == (9, 5)
    assert metrics["incomplete_per_part"] == {"a": [4, 9]}


def test_private_modules_and_tests_need_no_docstring_but_an_init_does(measure):
    bare = "def f(a, b): ...\n"
    metrics = measure(
        {"_private.py": bare, "_folder/x.py": bare, "tests/test_x.py": bare, "a/__init__.py": ""}
    )
    assert [(entry["path"], entry["name"]) for entry in metrics["incomplete"]] == [
        ("a/__init__.py", "(module)")
    ]


def git(folder: Path, *arguments: str) -> None:
    identity = {
        f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture
def two_revisions(tmp_path: Path) -> Path:
    """Return a package in a git repository, with a circle at the tag ``before`` and none at ``after``."""
    package = tmp_path / "src" / "p"
    git(tmp_path, "init")
    write_files(package, {"__init__.py": "", "one.py": "import p.two\n", "two.py": "import p.one\n"})
    write_files(package.parent, {"elsewhere.py": ""})
    for tag in ("before", "after"):
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--message", tag)
        git(tmp_path, "tag", tag)
        write_files(package, {"two.py": '"""A module."""\n\nx = 1  # why\n'})
    return package


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


@needs_git
def test_revisions_are_read_from_git_and_shown_side_by_side(two_revisions):
    shutil.rmtree(two_revisions)
    options = ("--revision", "before", "--revision", "after")
    measured = json.loads(run_script(two_revisions, *options, "--json").stdout)
    assert measured["before"]["circles"] == [["p.one", "p.two"]]
    assert (measured["after"]["circles"], measured["after"]["files"]) == ([], 3)
    lines = [line.split() for line in run_script(two_revisions, *options).stdout.splitlines()]
    assert lines[0] == ["before", "after"]
    assert ["import", "circles", "1", "0"] in lines
    assert ["comments", "per", "100", "lines", "0.00", "50.00"] in lines
    assert ["with", "a", "complete", "docstring", "0.0%", "(0)", "33.3%", "(1)"] in lines
    assert ["before:", "circles:", "p.one,", "p.two"] in lines


@needs_git
def test_an_unknown_revision_is_refused(two_revisions):
    finished = run_script(two_revisions, "--revision", "nowhere")
    assert finished.returncode == 2
    assert "git cannot read p at one of the revisions ['nowhere']" in finished.stderr


def test_a_folder_without_python_is_refused(tmp_path):
    finished = run_script(tmp_path)
    assert finished.returncode == 2
    assert "holds no Python file" in finished.stderr


def test_the_list_names_every_incomplete_docstring_and_counts_them_by_part(tmp_path):
    write_files(
        tmp_path / "p", {"a/x.py": '"""A module."""\n\n\ndef f(): ...\n', "b.py": '"""A module."""\n'}
    )
    lines = run_script(tmp_path / "p", "--list").stdout.splitlines()
    assert "now: 1 incomplete docstrings" in lines
    assert "  a/x.py:4: f: no docstring" in lines
    assert "     1 of    2  a" in lines
    assert "     0 of    1  b.py" in lines
