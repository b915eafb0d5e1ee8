"""`ka-ray doctor`: check this machine and the servers of a run, and say how to mend what is wrong."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from textwrap import wrap

from ka_ray.config import Config, RayConfig, TeachConfig, TrackingConfig, read_tree
from ka_ray.runs.findings import Check, Finding
from ka_ray.runs.gpu_checks import check_gpus
from ka_ray.runs.machine_checks import (
    check_disk,
    check_libraries,
    check_open_files,
    check_python,
    check_shared_memory,
    check_temporary_folder,
)
from ka_ray.runs.server_checks import check_names, check_ray, check_tracking, named_hosts, run_at_once
from ka_ray.terminal.results import escape_control, print_result
from ka_ray.verbosity import verbosity

TIMEOUT_S = 12.0
"""Seconds for all checks but that of torch; they run at once, and a question to a server takes at most 10."""

NAME_WIDTH = 18
"""Width of the column of names, in characters."""


def read_config(path: str, overrides: Sequence[str]) -> Config | TeachConfig:
    """Read the config of a run, or that of `ka-ray teach`, which has one teacher.

    Args:
        path: The YAML file.
        overrides: Items ``dotted.key=value``.

    Raises:
        InputError: A key cannot work.
    """
    kind = TeachConfig if "teacher" in read_tree(path, overrides) else Config
    return kind.load(path, overrides)


def diagnose(config: Config | TeachConfig | None) -> list[Finding]:
    """Run all checks.

    Args:
        config: The config whose servers and output folder are checked; None: what a run has by default.

    Returns:
        What was found, in the order of the checks.
    """
    checks = list_checks(config)
    late = f"no result within {TIMEOUT_S:g} s"
    findings = {
        name: Finding(name, "error", late, "find out what hangs: a disk, a network drive, or the network")
        for name in checks
    }

    def run(name: str, check: Check) -> None:
        try:
            findings[name] = check()
        except Exception as error:  # a check that fails says nothing of the machine, and hides no others
            found = f"the check failed: {type(error).__name__}: {error}"
            findings[name] = Finding(name, "warning", found, "please report this as a fault of ka_ray")

    run("GPU", checks["GPU"])  # importing torch takes long on a busy machine, and asks nobody else
    others = [partial(run, name, check) for name, check in checks.items() if name != "GPU"]
    run_at_once(others, TIMEOUT_S)
    return [findings[name] for name in checks]


def list_checks(config: Config | TeachConfig | None) -> Mapping[str, Check]:
    """Return all checks by their names.

    Args:
        config: As for :func:`diagnose`.
    """
    ray = RayConfig() if config is None else config.ray
    tracking = TrackingConfig() if config is None else config.tracking
    output = Path("runs").absolute() if config is None else config.output_dir
    hosts = named_hosts(
        ray.address or os.environ.get("RAY_ADDRESS"), tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    )
    return {
        "Python": check_python,
        "libraries": check_libraries,
        "GPU": check_gpus,
        "shared memory": check_shared_memory,
        "open files": check_open_files,
        "output folder": partial(check_disk, output, "output folder", "give another --output"),
        "temporary folder": check_temporary_folder,
        "names": partial(check_names, hosts),
        "Ray": partial(check_ray, ray),
        "MLflow": partial(check_tracking, tracking, output),
    }


def show_findings(findings: Sequence[Finding]) -> int:
    """Print what was found; with ``--quiet`` only what is wrong.

    Args:
        findings: What was found.

    Returns:
        The exit code: 1 if there is an error, otherwise 0.
    """
    failed = any(finding.state == "error" for finding in findings)
    shown = [finding for finding in findings if finding.state != "ok" or not verbosity().quiet]
    lines = [line for finding in shown for line in _format(finding)]
    wrong = sum(finding.state != "ok" for finding in findings)
    if not verbosity().quiet:
        lines.append(f"{wrong} of {len(findings)} checks found something" if wrong else "all checks are ok")
    figures = {"ok": not failed, "checks": [asdict(finding) for finding in findings]}
    print_result("\n".join(lines), figures, {})
    return int(failed)


def _format(finding: Finding) -> list[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    begin = f"{finding.state:<8}{finding.name:<{NAME_WIDTH}}"
    indent = " " * len(begin)
    lines = wrap(begin + escape_control(finding.found), width, subsequent_indent=indent)
    if finding.advice:
        mend = f"{' ' * 8}{'to mend it:':<{NAME_WIDTH}}{escape_control(finding.advice)}"
        lines += wrap(mend, width, subsequent_indent=indent)
    return lines
