"""Search for the widths of the student, as a Ray job.

    ray job submit --working-dir . -- python jobs/search_widths.py CONFIG --output DIR [--set KEY=VALUE ...]

The same as `ka-ray tune`, with the same options and exit codes. Every node must reach DIR.

See jobs/README.md for which files are sent with a job.
"""

import sys

from ka_ray.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
