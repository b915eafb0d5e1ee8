"""What the scripts in `jobs/` share: a config, overrides, an output folder, and exit code 2 for bad input."""

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from ka_ray.config import Config, TeachConfig
from ka_ray.errors import exit_code_of

AnyConfig = TypeVar("AnyConfig", Config, TeachConfig)


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a script that takes no config."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a script that takes a config; it may add options of its own."""
    parser = plain_parser(description)
    parser.add_argument("config", help="YAML description; jobs/configs/ has examples")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="output folder that every node reaches; needed in a Ray job")
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

    def load_and_work() -> None:
        config = kind.load(given.config, [*given.overrides, *options])
        work(config, given)
        print(f"output={config.output_dir}")

    return exit_code_of(load_and_work)
