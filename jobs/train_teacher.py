"""Train one teacher, as a Ray job.

    ray job submit --working-dir . -- python jobs/train_teacher.py jobs/configs/cifar10_teacher_a.yaml

The same as `ka-ray teach`. Exit code 2: bad input.
"""

import argparse
import sys

import ka_ray


def main() -> int:
    """Parse, call one function, print where the teacher is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML description of the teacher and its images")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="output folder; default runs/NAME")
    arguments = parser.parse_args()
    output = [f"output={arguments.output}"] if arguments.output else []
    try:
        result = ka_ray.teach(ka_ray.TeachConfig.load(arguments.config, [*arguments.overrides, *output]))
    except ka_ray.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"teacher={result['teacher']} accuracy={result['accuracy']} checkpoint={result['checkpoint']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
