"""Search for the widths that are worth it, as a Ray job.

    ray job submit --working-dir . -- python jobs/search_widths.py CONFIG [--set key=value ...]

The same as `ka-ray tune`. The output folder must be reachable by every node. Exit code 2: bad input.
"""

import argparse
import sys

import ka_ray


def main() -> int:
    """Parse, call one function, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML run description")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="output folder; default runs/NAME")
    given = parser.parse_args()
    output = [f"output={given.output}"] if given.output else []
    try:
        config = ka_ray.Config.load(given.config, [*given.overrides, *output])
        sweep = ka_ray.search_widths(config)
    except ka_ray.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(sweep.to_markdown())
    print(f"output={config.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
