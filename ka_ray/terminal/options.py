"""The options that every command of the command line takes, before the command's name and after it."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ka_ray.errors import InputError
from ka_ray.verbosity import choose_verbosity, verbosity

Quiet = Annotated[bool, typer.Option("--quiet", help="Print only warnings, errors and the paths of results.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output; progress goes to standard error."),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Print what libraries log, and the traceback of every error.")
]

SHARED = {"quiet": Quiet, "as_json": Json, "debug": Debug}
"""Name of the parameter -> the option."""


def with_shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that also takes the options for how much it says.

    Args:
        command: The function of the command; it is called without these options.
    """

    @functools.wraps(command)
    def chosen(
        *arguments: Any, quiet: bool = False, as_json: bool = False, debug: bool = False, **options: Any
    ) -> Any:
        choose_verbosity(quiet, as_json, debug)
        return command(*arguments, **options)

    signature = inspect.signature(command)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in SHARED.items()
    ]
    chosen.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *shared])  # type: ignore[attr-defined]
    chosen.__annotations__ = {**command.__annotations__, **SHARED}
    return chosen


def refuse_quiet_and_json(reason: str) -> None:
    """Refuse the two options for a command that cannot keep what they promise.

    Args:
        reason: Why it cannot.

    Raises:
        InputError: One of them was given.
    """
    if verbosity().quiet or verbosity().json:
        raise InputError(f"{reason}; leave out --quiet and --json")
