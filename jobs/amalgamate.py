"""Merge teachers into one student, as a Ray job.

    ray job submit --working-dir . -- python jobs/amalgamate.py jobs/configs/digits.yaml --output DIR

The same as `ka-ray run`. DIR must be reachable by every node of the cluster. Exit code 2: bad input.
"""

import argparse
import sys

import ka_ray


def main() -> int:
    """Parse, call one function, print where the run is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML run description")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="output folder; default runs/NAME")
    parser.add_argument("--extend", help="output folder of a finished run to which this one adds teachers")
    arguments = parser.parse_args()
    given = [f"{key}={getattr(arguments, key)}" for key in ("output", "extend") if getattr(arguments, key)]
    try:
        config = ka_ray.Config.load(arguments.config, [*arguments.overrides, *given])
        report = ka_ray.amalgamate(config)
    except ka_ray.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.to_markdown())
    print(f"output={config.output_dir}")
    print(f"mlflow_tracking_uri={report.mlflow.tracking_uri} mlflow_run_id={report.mlflow.run_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
