"""Name the class of image files, as a Ray job.

    ray job submit --working-dir . -- python jobs/predict.py DIR IMAGE...

The same as `ka-ray predict`: a line an image with its path, its class and its probability. DIR and the images
are paths on the cluster, or relative ones of files that travel with the job.
Exit code 2: bad input; 75: machines failed, the same command goes on.
"""

import sys

import ka_ray
from ka_ray.errors import exit_code_of
from ka_ray.submission.script import plain_parser


def main() -> int:
    """Parse, call one function, print the classes."""
    parser = plain_parser(__doc__)
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    given = parser.parse_args()

    def predict() -> None:
        for one in ka_ray.predict(given.folder, given.images):
            print(f"{one.path}\t{one.class_name}\t{one.probability:.3f}")

    return exit_code_of(predict)


if __name__ == "__main__":
    sys.exit(main())
