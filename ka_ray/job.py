"""What the scripts in `jobs/` share: a config, overrides, an output folder, and exit code 2 for bad input."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ka_ray.config import Config, TeachConfig
from ka_ray.errors import InputError

AnyConfig = TypeVar("AnyConfig", Config, TeachConfig)


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a script that takes a config; it may add options of its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML description; jobs/configs/ has examples")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="output folder; default runs/NAME")
    return parser


def run_job(
    parser: argparse.ArgumentParser, kind: type[AnyConfig], work: Callable[[AnyConfig, Any], None]
) -> int:
    """Parse, load the config, do the work, print where its results are.

    Args:
        parser: From :func:`job_parser`.
        kind: Of the config.
        work: Called with the config and the parsed arguments; prints what came out.

    Returns:
        The exit code.
    """
    given: argparse.Namespace = parser.parse_args()
    options: list[str] = [
        f"{key}={getattr(given, key)}" for key in ("output", "extend") if getattr(given, key, None)
    ]
    try:
        config = kind.load(given.config, [*given.overrides, *options])
        work(config, given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"output={config.output_dir}")
    return 0
