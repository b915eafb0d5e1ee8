"""Test following a job: each line of its log appears once and in order, Ctrl-C, and the exit code."""

import asyncio
import itertools
import re
import signal
from types import SimpleNamespace

import pytest

from ka_ray.errors import InputError
from ka_ray.submission import follow as follow_module
from ka_ray.submission.client import JobClient, JobState
from ka_ray.submission.follow import BACK_OFF_S, EXIT_STOPPED, EXIT_UNREACHABLE, JobFollower, follow_job

LOG = "one\n[two] images=2/4\n\nmlflow: http://m:5000/#/experiments/1/runs/r\nthree"
LINES = LOG.split("\n")
ADDRESS = "http://head:8265"


class FakeClient:
    """Replaces Ray's client.

    Args:
        connections: For each connection that tails the log, the texts that it yields and how it ends: with an
            error that it raises, with a coroutine function that it awaits, or without either (None).
        statuses: The job's status for each request; the last one is repeated. An error is raised instead.
        exit_code: Exit code of the job's command after it has ended.
        log: The complete log, or the error that a request for it raises.
    """

    def __init__(self, connections=(), statuses=("SUCCEEDED",), exit_code=0, log=LOG):
        self.connections, self.statuses = iter(connections), list(statuses)
        self.exit_code, self.log, self.stopped, self.tails = exit_code, log, [], 0

    async def tail_job_logs(self, job_id):
        self.tails += 1
        texts, error = next(self.connections, ([], None))
        for text in texts:
            await asyncio.sleep(0)
            yield text
        if callable(error):
            await error()
        elif error is not None:
            raise error

    def get_job_info(self, job_id):
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        if job_id in self.stopped:
            status = "STOPPED"
        code = self.exit_code if status in ("SUCCEEDED", "FAILED") else None
        return SimpleNamespace(status=status, driver_exit_code=code, message=f"Job is {status}.")

    def get_job_logs(self, job_id):
        if isinstance(self.log, Exception):
            raise self.log
        return self.log

    def stop_job(self, job_id):
        self.stopped.append(job_id)
        return True


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Replace sleeping, and return the list of the seconds that were to be slept."""
    recorded = []
    monkeypatch.setattr(follow_module.time, "sleep", recorded.append)
    return recorded


def printed_lines(capsys):
    # Without the control codes that move a terminal's cursor.
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", capsys.readouterr().out)
    return plain.split("\n")[:-1]


def follow(client):
    return JobFollower(JobClient(client, ADDRESS), "job").follow()


RUNNING_TWICE_THEN_SUCCEEDED = ("RUNNING", "RUNNING", "SUCCEEDED")
CONNECTION_DROPPED = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@pytest.mark.parametrize("cut_at", range(len(LOG) + 1))
@pytest.mark.parametrize(
    "error",
    [CONNECTION_DROPPED, None, ConnectionResetError("reset")],
    ids=["close code 1006", "closed without an error", "connection reset"],
)
def test_a_dropped_connection_neither_repeats_nor_loses_lines(capsys, cut_at, error):
    connections = [([LOG[:cut_at]], error), ([LOG[: cut_at + 3], LOG[cut_at + 3 :]], None)]
    # The log ends where the first connection ends, so that only the second connection yields the rest.
    follow(FakeClient(connections, RUNNING_TWICE_THEN_SUCCEEDED, log=LOG[:cut_at]))
    assert printed_lines(capsys) == LINES


def test_lines_are_printed_while_the_job_runs(capsys):
    seen = []

    async def read_output():
        seen.append(capsys.readouterr().out)

    follow(
        FakeClient([(["one\ntw"], read_output), (["one\ntwo\n"], None)], RUNNING_TWICE_THEN_SUCCEEDED, log="")
    )
    assert seen == ["one\n"]
    assert printed_lines(capsys) == ["two"]


def test_the_log_is_polled_if_websockets_are_refused(capsys):
    refused = itertools.repeat(([], RuntimeError("no websocket here")))
    client = FakeClient(refused, ["RUNNING"] * 20 + ["SUCCEEDED"])
    assert follow(client).has_ended
    assert client.tails == 20
    assert printed_lines(capsys) == LINES


def test_the_end_of_a_log_is_fetched_if_the_connection_closed_before(capsys):
    follow(FakeClient([([LOG[:5]], None)], ["RUNNING", "SUCCEEDED"]))
    assert printed_lines(capsys) == LINES


def test_a_connection_without_new_lines_is_reopened(capsys, monkeypatch):
    monkeypatch.setattr(follow_module, "IDLE_S", 0.02)

    async def stay_silent():
        await asyncio.sleep(60)

    client = FakeClient([([LOG[:5]], stay_silent), ([LOG], None)], RUNNING_TWICE_THEN_SUCCEEDED, log="")
    follow(client)
    assert client.tails == 2
    assert printed_lines(capsys) == LINES


def test_following_an_unreachable_cluster_ends_after_all_pauses(capsys, pauses):
    client = FakeClient(itertools.repeat(([], CONNECTION_DROPPED)), [ConnectionRefusedError("refused")])
    with pytest.raises(ConnectionError, match="refused"):
        follow(client)
    assert pauses == list(BACK_OFF_S)
    assert pauses == sorted(pauses)
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_UNREACHABLE
    text = capsys.readouterr().out
    assert "does not answer (refused); job job may still be running" in text
    assert f"ka-ray submit --follow job --address {ADDRESS}" in text


def test_following_continues_when_an_unreachable_cluster_answers_again(capsys):
    unreachable = [ConnectionRefusedError("refused")] * (len(BACK_OFF_S) - 1)
    client = FakeClient([([], None)] * 99, [*unreachable, "RUNNING", *unreachable, "FAILED"], exit_code=3)
    assert follow_job(JobClient(client, ADDRESS), "job") == 3
    assert printed_lines(capsys)[: len(LINES)] == LINES


def test_a_job_with_an_unreadable_log_still_has_its_exit_code(capsys):
    client = FakeClient(
        statuses=["FAILED"], exit_code=5, log=RuntimeError("Request failed with status code 500")
    )
    assert follow_job(JobClient(client, ADDRESS), "job") == 5
    assert "the end of the log cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 1, 1),
        ("FAILED", None, 1),
        ("FAILED", 0, 1),
        ("FAILED", -15, 143),
        ("STOPPED", None, EXIT_STOPPED),
        ("STOPPED", 0, EXIT_STOPPED),
    ],
)
def test_follow_job_returns_the_exit_code_of_the_job(capsys, status, code, expected):
    assert follow_job(JobClient(FakeClient(statuses=[status], exit_code=code), ADDRESS), "job") == expected
    out = printed_lines(capsys)
    assert out[-1].startswith(f"job job: {status}")
    has_message = status == "FAILED" and code is None  # Ray's message is printed if there is no exit code
    assert ("Job is FAILED." in out) == has_message
    assert out[-2 - has_message] == LINES[3]  # the MLflow address is printed again at the end


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Request failed with status code 404: Job x does not exist."), "there is no job job"),
        ("authentication", "RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_permanent_errors_end_following_without_retries(error, message):
    from ray.exceptions import AuthenticationError

    error = error if isinstance(error, Exception) else AuthenticationError("Authentication failed: token abc")
    with pytest.raises(InputError, match=message) as raised:
        follow_job(JobClient(FakeClient(statuses=[error]), ADDRESS), "job")
    assert "abc" not in str(raised.value)


@pytest.fixture(autouse=True)
def _default_ctrl_c_handler():
    """Handle Ctrl-C as at a terminal, because a process that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(60)


class Terminal:
    """Replaces standard input and output by a terminal at which a person gives an answer."""

    def __init__(self, monkeypatch, answer):
        for name in ("stdin", "stdout"):
            monkeypatch.setattr(getattr(follow_module.sys, name), "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", self.answer_question)
        self.questions, self._answer = [], answer

    def answer_question(self, question):
        self.questions.append(question)
        if isinstance(self._answer, type):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("answer", ["", "n", "no", "what?", KeyboardInterrupt, EOFError])
def test_ctrl_c_leaves_the_job_running_unless_the_answer_is_yes(capsys, monkeypatch, answer):
    client = FakeClient([(["one\n"], press_ctrl_c)], ["RUNNING"])
    terminal = Terminal(monkeypatch, answer)
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert terminal.questions == ["\nStop the job? [y/N] "]
    assert client.stopped == []
    assert (
        f"job job continues. to follow it again: ka-ray submit --follow job --address {ADDRESS}"
        in capsys.readouterr().out
    )


def test_ctrl_c_and_yes_stop_the_job_and_show_the_rest_of_its_log(capsys, monkeypatch):
    client = FakeClient([([LOG[:4]], press_ctrl_c)], ["RUNNING"])
    Terminal(monkeypatch, "y")
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert client.stopped == ["job"]
    out = printed_lines(capsys)
    # A line of the log may be printed directly after the last state of a progress bar.
    log_lines = [next((line for line in LINES if line and text.endswith(line)), "") for text in out]
    assert list(filter(None, log_lines)) == [*filter(None, LINES), LINES[3]]
    assert any(re.search(r"\[two\].*2/4.*0:00", text) for text in out)  # the progress bar
    assert out[-1] == "job job: STOPPED"


def test_ctrl_c_without_a_terminal_neither_asks_nor_stops(capsys, monkeypatch):
    def refuse(question):
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", refuse)
    client = FakeClient([(["one\n"], press_ctrl_c)], ["RUNNING"])
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert client.stopped == []
    assert "job job continues. to follow it again: ka-ray submit --follow job" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_following_while_the_job_stops(capsys, monkeypatch):
    client, stop_requests = FakeClient([([], press_ctrl_c), ([], press_ctrl_c)], ["RUNNING"]), []
    client.stop_job = stop_requests.append  # the job does not stop at once
    Terminal(monkeypatch, "y")
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert stop_requests == ["job"]
    assert "job job may continue. to follow it again: ka-ray submit --follow job" in capsys.readouterr().out


def test_has_ended_is_true_for_the_final_statuses_of_ray():
    states = {"PENDING": False, "RUNNING": False, "STOPPED": True, "SUCCEEDED": True, "FAILED": True}
    assert {status: JobState(status, None, "").has_ended for status in states} == states
