"""Follow a job on a cluster: show its log as it is written until the job ends, and reconnect if needed."""

import asyncio
import contextlib
import sys
import time

from ka_ray.submission.client import JobClient, JobState
from ka_ray.terminal.progress import RUN_URL_PREFIX, Display

EXIT_STOPPED = 130
"""Exit code if the job was stopped, or if Ctrl-C ended only the display of its log."""

EXIT_UNREACHABLE = 69
"""Exit code if the cluster no longer answers: ``EX_UNAVAILABLE`` of sysexits.h."""

IDLE_S = 60.0
"""Seconds without a new line after which to reconnect: a silent job looks like a dead connection."""

RETRY_S = 1.0
"""Seconds to wait before reconnecting after a connection has ended."""

BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Seconds to wait before each new attempt to reach a cluster that does not answer. If the attempt after the
last pause fails, too, the cluster counts as unreachable."""


class JobFollower:
    """Shows the lines that a job prints, each once, in order.

    Args:
        client: The cluster's job client.
        job_id: The job's id.

    Attributes:
        run_url_line: The line of the log with the run's MLflow address; None until the job prints it.
    """

    def __init__(self, client: JobClient, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._display = Display()
        self._received = (
            0  # number of characters; needed because every connection sends the log from its start
        )
        self._unfinished = ""  # the beginning of a line whose end has not been received yet
        self.run_url_line: str | None = None

    def follow(self) -> JobState:
        """Show the log until the job has ended, and return its final state.

        Raises:
            ConnectionError: The cluster has not answered for about two minutes. The job is not affected.
            InputError: There is no such job, or the cluster refuses the token.
        """
        with Display() as self._display:
            return self._follow()

    def _follow(self) -> JobState:
        failures = 0
        while True:
            try:
                # Plain HTTP requests before the websocket: if a proxy blocks websockets, these are enough.
                state = self._client.state(self._job_id)
                self._show_rest_of_log(state.has_ended)
                if state.has_ended:
                    return state
                failures = 0
                self._stream_until_closed()
                time.sleep(RETRY_S)
            except ConnectionError:
                if failures == len(BACK_OFF_S):
                    raise
                time.sleep(BACK_OFF_S[failures])
                failures += 1

    def _stream_until_closed(self) -> None:
        # Ignore a broken websocket: the next plain request finds out whether the cluster still answers.
        with contextlib.suppress(ConnectionError):
            asyncio.run(self._stream())

    async def _stream(self) -> None:
        position, stream = 0, self._client.tail(self._job_id)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), IDLE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            self._show_new_lines(text, position)
            position += len(text)

    def _show_rest_of_log(self, has_ended: bool) -> None:
        """Fetch the whole log and show the lines that were not shown yet.

        Args:
            has_ended: Whether the job has ended, so that an unfinished last line is shown, too.
        """
        try:
            self._show_new_lines(self._client.log(self._job_id), 0)
        except ConnectionError:
            if not has_ended:
                raise
            # The log is on the node that ran the job; an autoscaler may already have removed this node.
            self._display.note("(the end of the log cannot be read: the node that holds it does not answer)")
        if has_ended and self._unfinished:
            self._show(self._unfinished)
            self._unfinished = ""

    def _show_new_lines(self, text: str, position: int) -> None:
        """Show those complete lines of a part of the log that were not shown yet.

        Args:
            text: The part of the log.
            position: Number of characters of the log before this part.
        """
        new = text[max(0, self._received - position) :]
        self._received = max(self._received, position + len(text))
        *lines, self._unfinished = (self._unfinished + new).split("\n")
        for line in lines:
            self._show(line)

    def _show(self, line: str) -> None:
        if line.startswith(RUN_URL_PREFIX + "http"):
            self.run_url_line = line
        self._display.forward_line(line)


def exit_code(state: JobState) -> int:
    """Return the exit code of `ka-ray submit` for a job that has ended.

    This is the exit code of the job's command, 1 if the job failed before the command started, or
    :data:`EXIT_STOPPED`.

    Args:
        state: The job's final state.

    Example:
        >>> [exit_code(JobState(*job, "")) for job in (("SUCCEEDED", 0), ("FAILED", 2), ("FAILED", None))]
        [0, 2, 1]
        >>> [exit_code(JobState(*job, "")) for job in (("STOPPED", None), ("FAILED", -9))]
        [130, 137]
    """
    if state.status == "SUCCEEDED":
        return 0
    if state.status == "STOPPED":
        return EXIT_STOPPED
    code = state.exit_code or 1
    # A process that signal 9 ended has the exit code -9 in Python, and 128 + 9 in a shell.
    return code if code > 0 else 128 - code


def follow_job(client: JobClient, job_id: str) -> int:
    """Follow a job to its end. On Ctrl-C, ask whether to stop the job; without a yes, the job continues.

    Args:
        client: The cluster's job client.
        job_id: The job's id.

    Returns:
        The job's exit code; :data:`EXIT_STOPPED` if it was stopped or left running; :data:`EXIT_UNREACHABLE`
        if the cluster no longer answers.
    """
    follower = JobFollower(client, job_id)
    try:
        try:
            state = follower.follow()
        except KeyboardInterrupt:
            if not _confirm_stop():
                print(f"job {job_id} continues. {follow_again_hint(client, job_id)}")
                return EXIT_STOPPED
            client.stop(job_id)
            print(f"asked job {job_id} to stop")
            state = follower.follow()
    except KeyboardInterrupt:  # a second one, while the job was stopping
        print(f"job {job_id} may continue. {follow_again_hint(client, job_id)}")
        return EXIT_STOPPED
    except ConnectionError as error:
        print(f"{client.address} does not answer ({error}); job {job_id} may still be running.")
        print(follow_again_hint(client, job_id))
        return EXIT_UNREACHABLE
    _print_result(follower, state, job_id)
    return exit_code(state)


def follow_again_hint(client: JobClient, job_id: str) -> str:
    """Return a line for the user with the command that follows a job again.

    Args:
        client: The cluster's job client.
        job_id: The job's id.
    """
    return f"to follow it again: ka-ray submit --follow {job_id} --address {client.address}"


def _confirm_stop() -> bool:
    """Ask on the terminal whether to stop the job; without a terminal the answer is no."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input("\nStop the job? [y/N] ").strip().lower() in {"y", "yes"}
    except (KeyboardInterrupt, EOFError):
        print()
        return False


def _print_result(follower: JobFollower, state: JobState, job_id: str) -> None:
    if follower.run_url_line is not None:
        print(follower.run_url_line)  # again, because the log may have scrolled it off the screen
    if state.status == "FAILED" and state.exit_code is None:
        print(state.message)  # the command never started, so the log does not say why
    code = "" if state.exit_code is None else f", exit code {state.exit_code}"
    print(f"job {job_id}: {state.status}{code}", flush=True)
