"""What Ray logs in this process and the tracebacks of errors go to a file; the terminal gets the message."""

import logging
import sys
import threading

import pytest

from ka_ray.distributed.error_log import LISTENER, log_errors
from ka_ray.errors import InputError, run_with_exit_code
from ka_ray.storage.uris import to_path


@pytest.fixture(autouse=True)
def loggers(monkeypatch):
    """Give Ray's loggers handlers that write to standard error, as Ray does."""
    ray, data = logging.getLogger("ray"), logging.getLogger("ray.data")
    monkeypatch.setattr(ray, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(data, "handlers", [logging.StreamHandler(), logging.NullHandler()])
    monkeypatch.setattr(data, "propagate", False)
    return ray, data


def fail_as_a_pass_does() -> None:
    """Raise an error as a pass over images does: the user's error, from Ray's with its long traceback."""
    logging.getLogger("ray.data").error("Exception occurred in user code")
    try:
        raise RuntimeError("ray::MapWorker.submit()\n" * 70)
    except RuntimeError as error:
        raise InputError("image x.png cannot be read") from error


def test_the_terminal_ends_with_the_message_and_the_path_of_the_log(tmp_path, capsys):
    path = tmp_path / "errors.log"

    def work() -> None:
        with log_errors(path):
            fail_as_a_pass_does()

    assert run_with_exit_code(work) == 2
    assert capsys.readouterr().err == f"error: image x.png cannot be read\nlog: {path}\n"
    text = path.read_text()
    assert "ERROR ray.data: Exception occurred in user code" in text
    assert text.count("ray::MapWorker.submit()\n") >= 70
    assert "Traceback" in text


def test_earlier_content_is_kept_and_handlers_are_put_back(tmp_path, loggers, capsys):
    before = [list(logger.handlers) for logger in loggers]
    for _ in range(2):
        with log_errors(tmp_path / "errors.log"):
            logging.getLogger("ray.train").error("a worker died")
    assert (tmp_path / "errors.log").read_text().count("a worker died") == 2
    assert [logger.handlers for logger in loggers] == before
    assert capsys.readouterr().err == ""
    loggers[0].handlers[0].stream = sys.stderr
    logging.getLogger("ray").error("afterwards")
    assert capsys.readouterr().err == "afterwards\n"


def test_without_anything_to_log_there_is_no_file_and_no_note(tmp_path):
    with log_errors(tmp_path / "errors.log"):
        pass
    with pytest.raises(InputError) as error, log_errors(tmp_path / "errors.log"):
        raise InputError("wrong")
    assert not hasattr(error.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_what_rays_listener_prints_goes_to_the_log_and_our_own_lines_to_the_terminal(tmp_path, capsys):
    with log_errors(tmp_path / "errors.log"):
        thread = threading.Thread(
            target=lambda: print("(raylet) A worker died", file=sys.stderr), name=LISTENER
        )
        thread.start()
        thread.join()
        print("ours", file=sys.stderr)
    assert capsys.readouterr().err == "ours\n"
    assert "(raylet) A worker died" in (tmp_path / "errors.log").read_text()


def test_a_log_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    with (
        pytest.raises(InputError, match="cannot be read") as error,
        log_errors(tmp_path / "no" / "errors.log"),
    ):
        fail_as_a_pass_does()
    assert not hasattr(error.value, "__notes__")


def test_the_log_of_a_run_in_an_object_store(s3):
    path = to_path(f"{s3}/run/errors.log")
    for _ in range(2):
        with pytest.raises(InputError) as error, log_errors(path):
            fail_as_a_pass_does()
        assert error.value.__notes__ == [f"log: {path}"]
    assert path.read_text().count("Exception occurred in user code") == 2
