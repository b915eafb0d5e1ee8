"""What libraries write to the descriptors of the process goes to a log; our own lines go where they went."""

import os
import subprocess
import sys
import textwrap

import pytest

from ka_ray.storage.uris import to_path
from ka_ray.terminal.streams import divert_descriptors, error_stream, output_stream
from ka_ray.verbosity import Verbosity, verbosity_of_command

SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from ka_ray.terminal.progress import Display
from ka_ray.terminal.streams import divert_descriptors
from ka_ray.verbosity import Verbosity, verbosity_of_command

log = Path(sys.argv[1])
with verbosity_of_command(Verbosity({options})):
    print("before")
    with divert_descriptors(log), Display() as display:
        display.note("a note")
        os.write(1, b"C++ on 1\\n")
        os.write(2, b"C++ on 2\\n")
        print("a library prints")
        print("a library warns", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo a child writes"])
        {last}
    print("after")
    print("after on 2", file=sys.stderr)
"""

NOISE = {"C++ on 1", "C++ on 2", "a library prints", "a library warns", "a child writes"}


def run_script(log, options="diverts=True", last="pass"):
    code = SCRIPT.format(options=options, last=last)
    return subprocess.run(
        [sys.executable, "-c", code, str(log)], capture_output=True, text=True, env=os.environ, timeout=120
    )


def test_noise_goes_to_the_log_and_our_lines_to_the_terminal(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("earlier\n")
    done = run_script(log)
    assert done.stdout.splitlines() == ["before", "a note", "after"]
    assert done.stderr.splitlines() == ["after on 2"]
    first, *rest = log.read_text().splitlines()
    assert (first, set(rest)) == ("earlier", NOISE)


@pytest.mark.parametrize("options", ["", "diverts=True, debug=True"])
def test_a_library_call_and_debug_divert_nothing(tmp_path, options):
    log = tmp_path / "run.log"
    done = run_script(log, options)
    assert set(done.stdout.splitlines()) | set(done.stderr.splitlines()) >= NOISE
    assert not log.exists()


ALLOW_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""A process that starts in the background of a shell ignores Ctrl-C, and so do those that it starts."""


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        ("raise RuntimeError('a bug of ours')", "RuntimeError: a bug of ours"),
        (f"{ALLOW_CTRL_C}; signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt"),
        ("sys.exit('stopped')", "stopped"),
    ],
)
def test_tracebacks_and_ctrl_c_reach_the_terminal(tmp_path, last, shown):
    done = run_script(tmp_path / "run.log", last=last)
    assert done.stderr.splitlines()[-1] == shown
    assert shown not in (tmp_path / "run.log").read_text()
    assert done.returncode != 0


def test_with_json_standard_output_is_empty_until_the_result(tmp_path):
    done = run_script(tmp_path / "run.log", "diverts=True, json=True")
    assert done.stdout.splitlines() == ["before", "after"]
    assert "a note" in done.stderr.splitlines()


def test_with_quiet_there_are_no_notes(tmp_path):
    assert "a note" not in run_script(tmp_path / "run.log", "diverts=True, quiet=True").stdout


def test_streams_without_a_descriptor_are_left_alone(tmp_path, capsys):
    """Test what a notebook and pytest have instead of the standard streams."""
    with verbosity_of_command(Verbosity(diverts=True)), divert_descriptors(tmp_path / "run.log") as diverted:
        print("shown")
        assert (diverted, output_stream(), error_stream()) == (False, sys.stdout, sys.stderr)
    assert capsys.readouterr().out == "shown\n"
    assert not (tmp_path / "run.log").exists()


def test_a_log_that_cannot_be_opened_does_not_stop_the_run(tmp_path):
    done = run_script(tmp_path / "no" / "run.log")
    assert done.stdout.splitlines()[-1] == "after"
    assert NOISE & set(done.stdout.splitlines())


def test_the_log_of_a_run_in_an_object_store(s3):
    log = to_path(f"{s3}/run/run.log")
    code = textwrap.dedent(SCRIPT).format(options="diverts=True", last="pass")
    code = code.replace("Path(sys.argv[1])", f"to_path({str(log)!r})")
    code = f"from ka_ray.storage.uris import to_path\n{code}"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ)
    assert log.read_text().count("C++ on 2") == 2
