"""Following a job: every line once and in order despite broken connections, Ctrl-C, and the exit code."""

import asyncio
import itertools
import re
import signal
from types import SimpleNamespace

import pytest

from ka_ray.errors import InputError
from ka_ray.submission import follow as module
from ka_ray.submission.client import JobClient, JobState
from ka_ray.submission.follow import BACK_OFF_S, EXIT_STOPPED, EXIT_UNREACHABLE, JobFollower, follow_job

LOG = "one\n[two] images=2/4\n\nmlflow: http://m:5000/#/experiments/1/runs/r\nthree"
LINES = LOG.split("\n")
ADDRESS = "http://head:8265"


class FakeClient:
    """Answers like Ray's client.

    Args:
        connections: For each tail of the log, the texts that it yields, and then the error that it raises, or
            the function that it calls; None: it closes.
        statuses: The job's status at each question; the last one is repeated.
        exit_code: Exit code of the job's command, once it has ended.
        log: The whole log, or the error that asking for it raises.
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
    """The pauses in seconds, which are recorded instead of waited for."""
    recorded = []
    monkeypatch.setattr(module.time, "sleep", recorded.append)
    return recorded


def printed_lines(capsys):
    # Without the control codes that move a terminal's cursor.
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", capsys.readouterr().out)
    return plain.split("\n")[:-1]


def follow(client):
    return JobFollower(JobClient(client, ADDRESS), "job").follow()


RUNS_TWICE = ("RUNNING", "RUNNING", "SUCCEEDED")
DROPPED = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@pytest.mark.parametrize("cut", range(len(LOG) + 1))
@pytest.mark.parametrize(
    "error", [DROPPED, None, ConnectionResetError("reset")], ids=["1006", "closed", "reset"]
)
def test_a_dropped_connection_neither_repeats_nor_loses_lines(capsys, cut, error):
    connections = [([LOG[:cut]], error), ([LOG[: cut + 3], LOG[cut + 3 :]], None)]
    follow(FakeClient(connections, RUNS_TWICE, log=LOG[:cut]))  # only the second connection yields the rest
    assert printed_lines(capsys) == LINES


def test_lines_are_shown_as_they_are_written(capsys):
    seen = []

    async def read_output():
        seen.append(capsys.readouterr().out)

    follow(FakeClient([(["one\ntw"], read_output), (["one\ntwo\n"], None)], RUNS_TWICE, log=""))
    assert seen == ["one\n"]
    assert printed_lines(capsys) == ["two"]


def test_without_websockets_the_log_is_polled(capsys):
    refused = itertools.repeat(([], RuntimeError("no websocket here")))
    client = FakeClient(refused, ["RUNNING"] * 20 + ["SUCCEEDED"])
    assert follow(client).has_ended
    assert client.tails == 20
    assert printed_lines(capsys) == LINES


def test_the_end_of_a_log_is_fetched_if_the_connection_closed_before(capsys):
    follow(FakeClient([([LOG[:5]], None)], ["RUNNING", "SUCCEEDED"]))
    assert printed_lines(capsys) == LINES


def test_a_silent_connection_is_opened_again(capsys, monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.02)

    async def silence():
        await asyncio.sleep(60)

    client = FakeClient([([LOG[:5]], silence), ([LOG], None)], RUNS_TWICE, log="")
    follow(client)
    assert client.tails == 2
    assert printed_lines(capsys) == LINES


def test_an_unreachable_cluster_is_given_up_after_growing_pauses(capsys, pauses):
    client = FakeClient(itertools.repeat(([], DROPPED)), [ConnectionRefusedError("refused")])
    with pytest.raises(ConnectionError, match="refused"):
        follow(client)
    assert pauses == list(BACK_OFF_S)
    assert pauses == sorted(pauses)
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_UNREACHABLE
    text = capsys.readouterr().out
    assert "does not answer (refused); job job may still be running" in text
    assert f"ka-ray submit --follow job --address {ADDRESS}" in text


def test_a_cluster_that_answers_again_is_followed_further(capsys):
    away = [ConnectionRefusedError("refused")] * (len(BACK_OFF_S) - 1)
    client = FakeClient([([], None)] * 99, [*away, "RUNNING", *away, "FAILED"], exit_code=3)
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
def test_the_exit_code_is_the_jobs_own(capsys, status, code, expected):
    assert follow_job(JobClient(FakeClient(statuses=[status], exit_code=code), ADDRESS), "job") == expected
    out = printed_lines(capsys)
    assert out[-1].startswith(f"job job: {status}")
    assert (
        out[-1 - (status == "FAILED" and code is None) - 1] == LINES[3]
    )  # the address of the run is printed again
    assert ("Job is FAILED." in out) == (status == "FAILED" and code is None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Request failed with status code 404: Job x does not exist."), "there is no job job"),
        (SimpleNamespace, "RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_errors_that_waiting_cannot_resolve_end_the_following_at_once(error, words):
    from ray.exceptions import AuthenticationError

    error = error if isinstance(error, Exception) else AuthenticationError("Authentication failed: token abc")
    with pytest.raises(InputError, match=words) as raised:
        follow_job(JobClient(FakeClient(statuses=[error]), ADDRESS), "job")
    assert "abc" not in str(raised.value)


@pytest.fixture(autouse=True)
def _default_ctrl_c_handler():
    """Handle Ctrl-C as at a terminal: a process that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def ctrl_c():
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(60)


class Terminal:
    """Replaces standard input and output by a terminal at which a person gives an answer."""

    def __init__(self, monkeypatch, answer):
        for name in ("stdin", "stdout"):
            monkeypatch.setattr(getattr(module.sys, name), "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", self.answer_question)
        self.questions, self._answer = [], answer

    def answer_question(self, question):
        self.questions.append(question)
        if isinstance(self._answer, type):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("answer", ["", "n", "no", "what?", KeyboardInterrupt, EOFError])
def test_ctrl_c_leaves_the_job_running_without_a_yes(capsys, monkeypatch, answer):
    client = FakeClient([(["one\n"], ctrl_c)], ["RUNNING"])
    terminal = Terminal(monkeypatch, answer)
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert terminal.questions == ["\nStop the job? [y/N] "]
    assert client.stopped == []
    assert (
        f"job job continues. to follow it again: ka-ray submit --follow job --address {ADDRESS}"
        in capsys.readouterr().out
    )


def test_ctrl_c_and_yes_stop_the_job_and_show_the_rest_of_its_log(capsys, monkeypatch):
    client = FakeClient([([LOG[:4]], ctrl_c)], ["RUNNING"])
    Terminal(monkeypatch, "y")
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert client.stopped == ["job"]
    out = printed_lines(capsys)
    ends = [
        next((line for line in LINES if line and text.endswith(line)), "") for text in out
    ]  # a line may follow the end of a bar
    assert list(filter(None, ends)) == [*filter(None, LINES), LINES[3]]
    assert any(re.search(r"\[two\].*2/4.*0:00", text) for text in out)  # the progress bar
    assert out[-1] == "job job: STOPPED"


def test_ctrl_c_without_a_terminal_neither_asks_nor_stops(capsys, monkeypatch):
    def refuse(question):
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", refuse)
    client = FakeClient([(["one\n"], ctrl_c)], ["RUNNING"])
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert client.stopped == []
    assert "job job continues. to follow it again: ka-ray submit --follow job" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_the_following(capsys, monkeypatch):
    client, asked = FakeClient([([], ctrl_c), ([], ctrl_c)], ["RUNNING"]), []
    client.stop_job = asked.append  # the job does not stop at once
    Terminal(monkeypatch, "y")
    assert follow_job(JobClient(client, ADDRESS), "job") == EXIT_STOPPED
    assert asked == ["job"]
    assert "job job may continue. to follow it again: ka-ray submit --follow job" in capsys.readouterr().out


def test_has_ended_follows_rays_status():
    states = {"PENDING": False, "RUNNING": False, "STOPPED": True, "SUCCEEDED": True, "FAILED": True}
    assert {status: JobState(status, None, "").has_ended for status in states} == states
