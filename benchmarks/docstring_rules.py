"""Find the public definitions of a module whose docstring is incomplete; `code_metrics.py` counts them.

Modules, classes, functions and methods are public if neither their own name nor that of the file, folder or
class around them begins with an underscore. These do not count: functions inside functions, special methods,
overloads, methods marked ``@override`` (the base describes them), and setters (the property does).

A docstring is complete if it exists and has a line for everything that a caller passes:

- A function with two or more parameters besides ``self`` or ``cls`` describes each of them under ``Args:``.
- A class with two or more fields (public annotated names in its body, without ``ClassVar``) and parameters
  of ``__init__`` describes each under ``Attributes:`` or ``Args:``, in its docstring or in ``__init__``'s.

A single parameter or field needs no such line, because the summary describes it. One line may describe
several names: ``mean, std: ...``. A name inside running text is not a line. Instead of a line, these count:

- a ``description=`` or ``help=`` in an annotation or in the value of a field (pydantic, typer), also where
  the annotation is the name of an ``Annotated[...]`` of this or another module;
- a string below a field.

Inherited fields, ``Returns:`` and ``Raises:`` are not checked.
"""

import ast
import re
import textwrap
from collections.abc import Iterator, Set
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
Described = Function | ast.ClassDef | ast.Module

EXEMPT_DECORATORS = {"overload", "override", "setter", "deleter"}

ENTRY = re.compile(r"^([*`]*\w+`*(?:, [*`]*\w+`*)*)(?: \(.*\))?:(?: +\S|\n +\S)", re.MULTILINE)
"""An entry of a section: names, perhaps a type in brackets, a colon, and text there or on the next line."""


@dataclass(frozen=True)
class Definition:
    """A public definition.

    Attributes:
        line: Where it begins in its file, counted from 1.
        name: Its name after those of the classes around it, as in ``Class.method``; "(module)" for the module
            itself.
        missing: What its docstring lacks, empty if it is complete.
    """

    line: int
    name: str
    missing: str


def is_string(node: ast.AST) -> bool:
    """Return whether a statement is only a string: a docstring, or a string below a field."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def section_names(node: Described, *titles: str) -> set[str]:
    """Return the names that have an entry under one of the titles in the docstring of a definition."""
    text = f"{ast.get_docstring(node) or ''}\n"
    sections = re.findall(rf"^(?:{'|'.join(titles)}):\n((?: .*\n|\n)*)", text, re.MULTILINE)
    entries = (entry[1] for section in sections for entry in ENTRY.finditer(textwrap.dedent(section)))
    return {name for entry in entries for name in re.findall(r"\w+", entry)}


def has_description(node: ast.AST | None, named_types: Set[str]) -> bool:
    """Return whether an expression holds ``description=`` or ``help=``, or a name from ``named_types``."""
    return node is not None and any(
        (isinstance(inner, ast.keyword) and inner.arg in {"description", "help"})
        or (isinstance(inner, ast.Name) and inner.id in named_types)
        for inner in ast.walk(node)
    )


def described_types(tree: ast.Module) -> set[str]:
    """Return the names that a module gives to an ``Annotated[...]`` with a description in it."""
    named = [
        node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
    ]
    named = [
        node for node in named if ast.unparse(node.value).startswith(("Annotated[", "typing.Annotated["))
    ]
    targets = (target for node in named if has_description(node.value, set()) for target in node.targets)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def parameters(node: Function) -> list[ast.arg]:
    """Return the parameters that a caller passes: no ``self`` or ``cls``, no leading underscore."""
    given = node.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [one for one in every if one and one.arg not in {"self", "cls"} and not one.arg.startswith("_")]


def undescribed_parameters(node: Function, named_types: Set[str]) -> dict[str, bool]:
    """Return for each parameter whether its description is missing."""
    named = section_names(node, "Args")
    return {
        one.arg: one.arg not in named and not has_description(one.annotation, named_types)
        for one in parameters(node)
    }


def is_field(node: ast.AnnAssign) -> bool:
    """Return whether an annotated name in a class body is a public field."""
    name = node.target.id if isinstance(node.target, ast.Name) else "_"
    return not name.startswith("_") and "ClassVar" not in ast.unparse(node.annotation)


def undescribed_fields(node: ast.ClassDef, named_types: Set[str]) -> dict[str, bool]:
    """Return for each field and each parameter of ``__init__`` whether its description is missing."""
    named = section_names(node, "Args", "Attributes")
    missing: dict[str, bool] = {}
    for statement, below in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, Function) and statement.name == "__init__":
            missing |= undescribed_parameters(statement, named_types)
        elif isinstance(statement, ast.AnnAssign) and is_field(statement):
            parts = (statement.annotation, statement.value)
            described = is_string(below) or any(has_description(part, named_types) for part in parts)
            missing[ast.unparse(statement.target)] = not described
    return {name: absent and name not in named for name, absent in missing.items()}


def what_is_missing(node: Described, named_types: Set[str]) -> str:
    """Return what a docstring lacks, in words; empty if it is complete."""
    if ast.get_docstring(node) is None:
        return "no docstring"
    missing: dict[str, bool] = {}
    if isinstance(node, ast.ClassDef):
        missing = undescribed_fields(node, named_types)
    elif isinstance(node, Function):
        missing = undescribed_parameters(node, named_types)
    names = [name for name, absent in missing.items() if absent] if len(missing) > 1 else []
    return f"no line on {', '.join(names)}" if names else ""


def is_public(node: Function | ast.ClassDef) -> bool:
    """Return whether a definition needs a docstring, if its file and the classes around it are public."""
    decorators = {ast.unparse(one).split(".")[-1] for one in node.decorator_list}
    return not node.name.startswith("_") and not decorators & EXEMPT_DECORATORS


def nested_definitions(parent: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield the full name and node of every public definition, those under ``if`` and ``try`` too."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Function | ast.ClassDef):
            if is_public(node):
                yield f"{prefix}{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from nested_definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            yield from nested_definitions(node, prefix)


def definitions(tree: ast.Module, named_types: Set[str]) -> list[Definition]:
    """Check the docstrings of a public module and of all public definitions in it.

    Args:
        tree: The parsed module.
        named_types: Names in this module of an ``Annotated[...]`` with a description.
    """
    found = [Definition(1, "(module)", what_is_missing(tree, named_types))]
    for name, node in nested_definitions(tree):
        found.append(Definition(node.lineno, name, what_is_missing(node, named_types)))
    return found
