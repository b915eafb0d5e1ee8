"""Follow a job on a cluster: show its log as it is written, across broken connections, until it ends."""

import asyncio
import contextlib
import sys
import time

from ka_ray.submission.client import JobClient, JobState
from ka_ray.terminal.progress import RUN_URL_PREFIX, Display

EXIT_STOPPED = 130
"""Exit code if the job was stopped, or if Ctrl-C ended the following and the job may continue."""

EXIT_UNREACHABLE = 69
"""Exit code if the cluster does not answer any more: ``EX_UNAVAILABLE`` of sysexits.h. Try again later."""

IDLE_S = 60.0
"""Seconds without a new line after which the connection is opened again: it may be dead, or the job may only
print nothing."""

RETRY_S = 1.0
"""Pause in seconds between a connection that ended and the next one."""

BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Pauses in seconds between attempts to reach a cluster that does not answer; if it does not answer after the
last one, it counts as unreachable."""


class JobFollower:
    """Shows the lines that a job prints, each once, in order.

    Args:
        client: The cluster's job client.
        job_id: The job's id.

    Attributes:
        link: The line with the address at which a browser shows the run; None until the job prints it.
    """

    def __init__(self, client: JobClient, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._display = Display()
        self._received = 0  # number of characters: every new connection starts at the log's first one
        self._unfinished = ""  # a line whose end has not come yet
        self.link: str | None = None

    def follow(self) -> JobState:
        """Show the log until the job has ended, and return its last state.

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
                # Plain requests first: they suffice where a proxy blocks websockets or breaks them each time.
                state = self._client.state(self._job_id)
                self._catch_up(state.has_ended)
                if state.has_ended:
                    return state
                failures = 0
                self._tail_until_closed()
                time.sleep(RETRY_S)
            except ConnectionError:
                if failures == len(BACK_OFF_S):
                    raise
                time.sleep(BACK_OFF_S[failures])
                failures += 1

    def _tail_until_closed(self) -> None:
        # If the connection breaks, the next plain request shows whether the cluster still answers.
        with contextlib.suppress(ConnectionError):
            asyncio.run(self._tail())

    async def _tail(self) -> None:
        position, stream = 0, self._client.tail(self._job_id)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), IDLE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            self._take(text, position)
            position += len(text)

    def _catch_up(self, has_ended: bool) -> None:
        """Show the part of the log that did not come over the connection."""
        try:
            self._take(self._client.log(self._job_id), 0)
        except ConnectionError:
            if not has_ended:
                raise
            # The log is on the node that ran the job, which may be gone with the job.
            self._display.note("(the end of the log cannot be read: its node does not answer)")
        if has_ended and self._unfinished:
            self._show(self._unfinished)
            self._unfinished = ""

    def _take(self, text: str, position: int) -> None:
        """Show the complete lines that are new in a part of the log.

        Args:
            text: The part.
            position: Where it starts in the log, in characters.
        """
        new = text[max(0, self._received - position) :]
        self._received = max(self._received, position + len(text))
        *lines, self._unfinished = (self._unfinished + new).split("\n")
        for line in lines:
            self._show(line)

    def _show(self, line: str) -> None:
        if line.startswith(RUN_URL_PREFIX + "http"):
            self.link = line
        self._display.forward_line(line)


def exit_code(state: JobState) -> int:
    """Return the exit code for a job that has ended: its command's own, or 1 if it failed without one.

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
    # Python writes "ended by signal 9" as -9, a shell as 128 + 9.
    return code if code > 0 else 128 - code


def follow_job(client: JobClient, job_id: str) -> int:
    """Follow a job to its end. Ctrl-C asks whether to stop the job; without a yes, the job continues.

    Args:
        client: The cluster's job client.
        job_id: The job's id.

    Returns:
        The job's exit code; :data:`EXIT_STOPPED` if it was stopped or left running; :data:`EXIT_UNREACHABLE`
        if the cluster does not answer any more.
    """
    follower = JobFollower(client, job_id)
    try:
        try:
            state = follower.follow()
        except KeyboardInterrupt:
            if not _confirm_stop():
                print(f"job {job_id} continues. {resume_command(client, job_id)}")
                return EXIT_STOPPED
            client.stop(job_id)
            print(f"asked job {job_id} to stop")
            state = follower.follow()
    except KeyboardInterrupt:  # a second one, while the job was stopping
        print(f"job {job_id} may continue. {resume_command(client, job_id)}")
        return EXIT_STOPPED
    except ConnectionError as error:
        print(f"{client.address} does not answer ({error}); job {job_id} may still be running.")
        print(resume_command(client, job_id))
        return EXIT_UNREACHABLE
    _print_result(follower, state, job_id)
    return exit_code(state)


def resume_command(client: JobClient, job_id: str) -> str:
    """Return the text that says how to follow a job again.

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
    if follower.link is not None:
        print(follower.link)  # once more, because the log has scrolled it away
    if state.status == "FAILED" and state.exit_code is None:
        print(state.message)  # the command never ran, so no log says why
    code = "" if state.exit_code is None else f", exit code {state.exit_code}"
    print(f"job {job_id}: {state.status}{code}", flush=True)
