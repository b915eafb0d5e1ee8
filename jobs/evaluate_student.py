"""Judge a finished student on labelled images, as a Ray job.

    ray job submit --working-dir . -- python jobs/evaluate_student.py DIR --images FOLDER

The same as `ka-ray evaluate`. Exit code 2: bad input.
"""

import argparse
import json
import sys

import ka_ray
from ka_ray.api import images_for


def main() -> int:
    """Parse, call one function, print the accuracies as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument("--images", required=True, help="a folder per class, Parquet, or `digits`")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    try:
        images = images_for(arguments.folder, arguments.images, arguments.overrides)
        print(json.dumps(ka_ray.evaluate(arguments.folder, images)))
    except ka_ray.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
