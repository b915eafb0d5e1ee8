"""Following a job: its lines once and in order over broken connections, Ctrl-C, and its exit code."""

import asyncio
import itertools
import re
import signal
from types import SimpleNamespace

import pytest

from ka_ray.errors import InputError
from ka_ray.submission import follow as following
from ka_ray.submission.client import Jobs, JobState
from ka_ray.submission.follow import BACK_OFF_S, LOST, STOPPED, JobFollower, watch

LOG = "one\n[two] images=2/4\n\nmlflow: http://m:5000/#/experiments/1/runs/r\nthree"
LINES = LOG.split("\n")
ADDRESS = "http://head:8265"


class FakeClient:
    """Answers as Ray's client does.

    Args:
        connections: What each tail of the log brings: texts, and what it raises in the end (None: it closes).
        statuses: Of the job, one a question; the last one stays.
        exit_code: Of the job's command, once it has ended.
        log: What asking for the whole log gives, or raises.
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
    """How long it would have waited."""
    waited = []
    monkeypatch.setattr(following.time, "sleep", waited.append)
    return waited


def shown(capsys):
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", capsys.readouterr().out)  # without what moves the cursor
    return plain.split("\n")[:-1]


def follow(client):
    return JobFollower(Jobs(client, ADDRESS), "job").follow()


RUNS_TWICE = ("RUNNING", "RUNNING", "SUCCEEDED")
DROPPED = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@pytest.mark.parametrize("cut", range(len(LOG) + 1))
@pytest.mark.parametrize(
    "error", [DROPPED, None, ConnectionResetError("reset")], ids=["1006", "closed", "reset"]
)
def test_a_dropped_connection_repeats_no_line_and_loses_none(capsys, cut, error):
    connections = [([LOG[:cut]], error), ([LOG[: cut + 3], LOG[cut + 3 :]], None)]
    follow(FakeClient(connections, RUNS_TWICE, log=LOG[:cut]))  # the rest comes with the second one alone
    assert shown(capsys) == LINES


def test_lines_are_shown_as_they_come(capsys):
    seen = []

    async def look():
        seen.append(capsys.readouterr().out)

    follow(FakeClient([(["one\ntw"], look), (["one\ntwo\n"], None)], RUNS_TWICE, log=""))
    assert seen == ["one\n"]
    assert shown(capsys) == ["two"]


def test_a_log_without_websockets_is_asked_for_again_and_again(capsys):
    refused = itertools.repeat(([], RuntimeError("no websocket here")))
    client = FakeClient(refused, ["RUNNING"] * 20 + ["SUCCEEDED"])
    assert follow(client).over
    assert client.tails == 20
    assert shown(capsys) == LINES


def test_the_end_of_a_log_is_fetched_where_the_connection_did_not_bring_it(capsys):
    follow(FakeClient([([LOG[:5]], None)], ["RUNNING", "SUCCEEDED"]))
    assert shown(capsys) == LINES


def test_a_silent_connection_is_made_anew(capsys, monkeypatch):
    monkeypatch.setattr(following, "IDLE_S", 0.02)

    async def silence():
        await asyncio.sleep(60)

    client = FakeClient([([LOG[:5]], silence), ([LOG], None)], RUNS_TWICE, log="")
    follow(client)
    assert client.tails == 2
    assert shown(capsys) == LINES


def test_a_cluster_that_stays_away_is_given_up_with_growing_pauses(capsys, pauses):
    client = FakeClient(itertools.repeat(([], DROPPED)), [ConnectionRefusedError("refused")])
    with pytest.raises(ConnectionError, match="refused"):
        follow(client)
    assert pauses == list(BACK_OFF_S)
    assert pauses == sorted(pauses)
    assert watch(Jobs(client, ADDRESS), "job") == LOST
    text = capsys.readouterr().out
    assert "does not answer (refused); job job may still be running" in text
    assert f"ka-ray submit --follow job --address {ADDRESS}" in text


def test_a_cluster_that_comes_back_is_forgiven(capsys):
    away = [ConnectionRefusedError("refused")] * (len(BACK_OFF_S) - 1)
    client = FakeClient([([], None)] * 99, [*away, "RUNNING", *away, "FAILED"], exit_code=3)
    assert watch(Jobs(client, ADDRESS), "job") == 3
    assert shown(capsys)[: len(LINES)] == LINES


def test_a_job_whose_log_is_gone_still_has_its_exit_code(capsys):
    client = FakeClient(
        statuses=["FAILED"], exit_code=5, log=RuntimeError("Request failed with status code 500")
    )
    assert watch(Jobs(client, ADDRESS), "job") == 5
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
        ("STOPPED", None, STOPPED),
        ("STOPPED", 0, STOPPED),
    ],
)
def test_the_exit_code_is_the_jobs_own(capsys, status, code, expected):
    assert watch(Jobs(FakeClient(statuses=[status], exit_code=code), ADDRESS), "job") == expected
    out = shown(capsys)
    assert out[-1].startswith(f"job job: {status}")
    assert out[-1 - (status == "FAILED" and code is None) - 1] == LINES[3]  # the link, once more
    assert ("Job is FAILED." in out) == (status == "FAILED" and code is None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Request failed with status code 404: Job x does not exist."), "there is no job job"),
        (SimpleNamespace, "RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_what_cannot_be_mended_by_waiting_ends_at_once(error, words):
    from ray.exceptions import AuthenticationError

    error = error if isinstance(error, Exception) else AuthenticationError("Authentication failed: token abc")
    with pytest.raises(InputError, match=words) as raised:
        watch(Jobs(FakeClient(statuses=[error]), ADDRESS), "job")
    assert "abc" not in str(raised.value)


@pytest.fixture(autouse=True)
def _heeding_ctrl_c():
    """As at a terminal: a shell starts what runs in the background deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def ctrl_c():
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(60)


class Terminal:
    """Stands for standard input and output of a person who gives an answer."""

    def __init__(self, monkeypatch, answer):
        for name in ("stdin", "stdout"):
            monkeypatch.setattr(getattr(following.sys, name), "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", self.asked)
        self.questions, self._answer = [], answer

    def asked(self, question):
        self.questions.append(question)
        if isinstance(self._answer, type):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("answer", ["", "n", "no", "what?", KeyboardInterrupt, EOFError])
def test_ctrl_c_leaves_the_job_running_unless_it_is_told_to_stop(capsys, monkeypatch, answer):
    client = FakeClient([(["one\n"], ctrl_c)], ["RUNNING"])
    terminal = Terminal(monkeypatch, answer)
    assert watch(Jobs(client, ADDRESS), "job") == STOPPED
    assert terminal.questions == ["\nStop the job? [y/N] "]
    assert client.stopped == []
    assert (
        f"job job goes on. follow it: ka-ray submit --follow job --address {ADDRESS}"
        in capsys.readouterr().out
    )


def test_ctrl_c_and_yes_stop_the_job_and_show_its_end(capsys, monkeypatch):
    client = FakeClient([([LOG[:4]], ctrl_c)], ["RUNNING"])
    Terminal(monkeypatch, "y")
    assert watch(Jobs(client, ADDRESS), "job") == STOPPED
    assert client.stopped == ["job"]
    out = shown(capsys)
    ends = [
        next((line for line in LINES if line and text.endswith(line)), "") for text in out
    ]  # behind a bar's end
    assert list(filter(None, ends)) == [*filter(None, LINES), LINES[3]]
    assert any(re.search(r"\[two\].*2/4.*0:00", text) for text in out)  # the bar
    assert out[-1] == "job job: STOPPED"


def test_ctrl_c_without_a_terminal_asks_nobody_and_stops_nothing(capsys, monkeypatch):
    def nobody(question):
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", nobody)
    client = FakeClient([(["one\n"], ctrl_c)], ["RUNNING"])
    assert watch(Jobs(client, ADDRESS), "job") == STOPPED
    assert client.stopped == []
    assert "job job goes on" in capsys.readouterr().out


def test_ctrl_c_while_a_job_stops_leaves_it_at_that(capsys, monkeypatch):
    client, asked = FakeClient([([], ctrl_c), ([], ctrl_c)], ["RUNNING"]), []
    client.stop_job = asked.append  # and it takes its time
    Terminal(monkeypatch, "y")
    assert watch(Jobs(client, ADDRESS), "job") == STOPPED
    assert asked == ["job"]
    assert "job job may go on" in capsys.readouterr().out


def test_a_job_is_over_when_ray_says_so():
    assert [JobState(s, None, "").over for s in ("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")] == [
        False,
        False,
        True,
        True,
        True,
    ]
