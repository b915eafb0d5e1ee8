"""Judge a finished student on labelled images, as a Ray job.

    ray job submit --working-dir . -- python jobs/evaluate_student.py DIR --images FOLDER

The same as `ka-ray evaluate`. DIR and FOLDER must be reachable by every node.
Exit code 2: bad input; 75: machines failed, the same command goes on.
"""

import json
import sys

import ka_ray
from ka_ray.errors import exit_code_of
from ka_ray.submission.script import plain_parser
from ka_ray.workflows.evaluate import images_for


def main() -> int:
    """Parse, call one function, print the accuracies as JSON."""
    parser = plain_parser(__doc__)
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument("--images", required=True, help="a folder per class, Parquet, or `digits`")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()

    def evaluate() -> None:
        images = images_for(given.folder, given.images, given.overrides)
        print(json.dumps(ka_ray.evaluate(given.folder, images)))

    return exit_code_of(evaluate)


if __name__ == "__main__":
    sys.exit(main())
