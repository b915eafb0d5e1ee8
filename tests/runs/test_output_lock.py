"""One command at a time in an output folder: who is refused, which locks are taken over, what is left."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from ka_ray import TeachConfig, amalgamate, compare, measure_spectrum, search_widths, teach
from ka_ray.errors import InputError
from ka_ray.runs import output_lock
from ka_ray.runs.output_folder import CONFIG, claim_output_dir
from ka_ray.runs.output_lock import LOCK, Holder, lock_folder
from ka_ray.storage.files import read_json, write_json
from ka_ray.storage.uris import to_path

HOLD = """
import sys, time
from pathlib import Path
from ka_ray.runs.output_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def hold_in_another_process(folder) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    return process


def write_lock(folder, **changes) -> Holder:
    """Write the lock of this process into a folder, with changes."""
    holder = replace(Holder.this_process(), **changes)
    folder.mkdir(exist_ok=True)
    write_json(folder / LOCK, asdict(holder))
    return holder


def test_the_second_command_is_told_the_first_ones_host_and_process(tmp_path):
    process = hold_in_another_process(tmp_path / "out")
    try:
        with pytest.raises(InputError) as error, lock_folder(tmp_path / "out"):
            pass
        assert f"host {os.uname().nodename}, process {process.pid}, since 20" in str(error.value)
        assert "give another --output" in str(error.value)
    finally:
        process.communicate("end\n", timeout=60)
    assert list((tmp_path / "out").iterdir()) == []
    with lock_folder(tmp_path / "out"):
        assert read_json(tmp_path / "out" / LOCK)["pid"] == os.getpid()
    assert list((tmp_path / "out").iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    process = hold_in_another_process(tmp_path / "out")
    process.kill()
    process.communicate()
    assert read_json(tmp_path / "out" / LOCK)["pid"] == process.pid
    with lock_folder(tmp_path / "out"):
        assert read_json(tmp_path / "out" / LOCK)["pid"] == os.getpid()


def test_a_process_that_has_the_id_of_the_dead_one_does_not_hold_its_lock(tmp_path):
    write_lock(tmp_path, started="long ago")  # with the id of this process, which is alive
    with lock_folder(tmp_path):
        assert read_json(tmp_path / LOCK)["started"] == Holder.this_process().started


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock_folder(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_silent_process_of_another_machine_is_dead_and_one_that_beats_is_alive(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(output_lock, "SILENCE_S", 1.0)
    other = write_lock(tmp_path, machine="another", host="far", pid=1)
    with lock_folder(tmp_path):
        pass
    assert "locked by host far, process 1, since" in capsys.readouterr().err

    monkeypatch.setattr(output_lock, "SILENCE_S", 60.0)
    write_json(tmp_path / LOCK, asdict(other))
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.2):
            count += 1
            write_json(tmp_path / LOCK, asdict(other) | {"beat": count})

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="host far, process 1"), lock_folder(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()
    assert read_json(tmp_path / LOCK)["host"] == "far"


def test_a_process_shows_life_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "BEAT_S", 0.05)
    with lock_folder(tmp_path):
        while read_json(tmp_path / LOCK)["beat"] < 2:
            time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_that_another_command_has_taken_over_is_not_removed(tmp_path):
    with lock_folder(tmp_path):
        other = write_lock(tmp_path, host="far", machine="another")
    assert read_json(tmp_path / LOCK) == asdict(other)


def test_a_process_whose_lock_was_taken_over_says_so_and_leaves_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output_lock, "BEAT_S", 0.05)
    other = write_lock(tmp_path, host="far", machine="another")
    mine = Holder.this_process()
    output_lock._beat(tmp_path / LOCK, mine, threading.Event())  # returns, although nothing has ended
    assert "was taken by host far" in capsys.readouterr().err
    assert read_json(tmp_path / LOCK) == asdict(other)


def test_exactly_one_of_many_commands_gets_the_lock_that_a_dead_one_left(tmp_path):
    write_lock(tmp_path, started="long ago")
    # The lock is kept until all have tried, or one that came late would get it afterwards.
    start, tried = threading.Barrier(8), threading.Barrier(8)

    def try_to_lock(_) -> bool:
        start.wait()
        try:
            with lock_folder(tmp_path):
                tried.wait()
                return True
        except InputError:
            tried.wait()
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_to_lock, range(8))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_this_user_may_not_see_is_judged_by_its_beats(tmp_path, monkeypatch, capsys):
    """As on machines whose /proc hides the processes of others."""
    monkeypatch.setattr(output_lock, "SILENCE_S", 1.0)
    monkeypatch.setattr(output_lock, "is_hidden", lambda pid: True)
    write_lock(tmp_path, host="here", started="long ago")
    with lock_folder(tmp_path):
        pass
    assert "locked by host here" in capsys.readouterr().err


def test_a_damaged_lock_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "WRITING_S", 1)
    (tmp_path / LOCK).write_text('{"host": ')
    with pytest.raises(InputError, match=r"lock\.json is damaged; .* delete the file"), lock_folder(tmp_path):
        pass


def test_the_empty_lock_of_a_process_that_died_before_it_wrote_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "WRITING_S", 1)
    (tmp_path / LOCK).touch()
    with lock_folder(tmp_path):
        assert read_json(tmp_path / LOCK)["pid"] == os.getpid()


def test_a_lock_that_is_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"lock\.json is a link to a file that is not there"):
        lock_folder(tmp_path).__enter__()


def test_an_object_store_is_locked_as_well_as_it_can_be(s3):
    folder = to_path(f"{s3}/run")
    with lock_folder(folder):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock_folder(folder):
            pass
    assert not (folder / LOCK).exists()


def test_a_claimed_folder_keeps_the_first_commands_config(load_config, tmp_path):
    def config(*overrides: str):
        return load_config(f"output={tmp_path / 'out'}", "tracking.backend=none", *overrides)

    process = hold_in_another_process(tmp_path / "out")
    try:  # the first command has not written its config yet
        with pytest.raises(InputError, match=f"process {process.pid}"), claim_output_dir(config("seed=1")):
            pass
        assert not (tmp_path / "out" / CONFIG).exists()
    finally:
        process.communicate("end\n", timeout=60)
    with claim_output_dir(config()) as folder:
        assert read_json(folder / CONFIG)["seed"] == 0
    with pytest.raises(InputError, match="seed: 0 there, 1 now"), claim_output_dir(config("seed=1")):
        pass
    # A folder that no run made is not touched, not even by a lock.
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("x")
    stamp = (tmp_path / "thesis").stat().st_mtime_ns
    with (
        pytest.raises(InputError, match="no run made it"),
        claim_output_dir(load_config(f"output={tmp_path / 'thesis'}", "tracking.backend=none")),
    ):
        pass
    assert (tmp_path / "thesis").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("command", [amalgamate, compare, measure_spectrum, search_widths])
def test_every_command_that_writes_a_run_is_refused(load_config, tmp_path, command):
    output = tmp_path / "out"
    config = load_config(f"output={output}", "tracking.backend=none", "extract.images=50")
    with lock_folder(output), pytest.raises(InputError, match=f"another command .* process {os.getpid()}"):
        command(config)
    assert list(output.iterdir()) == []


def test_teach_is_refused_too(tmp_path):
    network = {"network": "plain", "arguments": {"widths": [4]}, "classes": [f"digit_{i}" for i in range(5)]}
    config = {
        "name": "low",
        "images": {"source": "digits"},
        "teacher": {"name": "low", **network, "training": {"epochs": 1}},
    }
    path = tmp_path / "teach.yaml"
    path.write_text(json.dumps(config))
    loaded = TeachConfig.load(path, [f"output={tmp_path / 'out'}", "tracking.backend=none"])
    with lock_folder(tmp_path / "out"), pytest.raises(InputError, match=f"process {os.getpid()}"):
        teach(loaded)
    assert list((tmp_path / "out").iterdir()) == []
