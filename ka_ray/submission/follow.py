"""Follow a job on a cluster: its log line by line, over broken connections, to its exit code."""

import asyncio
import contextlib
import sys
import time

from ka_ray.submission.client import Jobs, JobState
from ka_ray.terminal.progress import RUN_URL_PREFIX, Display

STOPPED, LOST = 130, 69
"""Exit codes: of a job that was stopped, or left alone; and of one that is out of reach (try again later)."""

IDLE_S = 60.0
"""A log that is silent for this long is asked for anew: a dead connection says nothing either."""

AGAIN_S = 1.0
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Pauses between attempts to reach a cluster that does not answer; after the last one it is given up."""


class JobFollower:
    """Shows the lines that a job prints, each once, in order.

    Args:
        jobs: Of the cluster.
        job_id: Which one.
    """

    def __init__(self, jobs: Jobs, job_id: str) -> None:
        self._jobs, self._job_id = jobs, job_id
        self._display = Display()
        self._received = 0  # characters; every connection begins with the first one
        self._unfinished = ""
        self.link: str | None = None

    def follow(self) -> JobState:
        """Show the log until the job is over.

        Raises:
            ConnectionError: The cluster has not answered for about two minutes. The job is not affected.
            InputError: There is no such job, or the token is refused.
        """
        with Display() as self._display:
            return self._follow()

    def _follow(self) -> JobState:
        failures = 0
        while True:
            try:
                # Plain requests come first: where websockets do not pass, or break each time, they suffice.
                state = self._jobs.state(self._job_id)
                self._catch_up(state.over)
                if state.over:
                    return state
                failures = 0
                self._tail_a_while()
                time.sleep(AGAIN_S)
            except ConnectionError:
                if failures == len(BACK_OFF_S):
                    raise
                time.sleep(BACK_OFF_S[failures])
                failures += 1

    def _tail_a_while(self) -> None:
        with contextlib.suppress(
            ConnectionError
        ):  # the next plain request shows whether the cluster is there
            asyncio.run(self._tail())

    async def _tail(self) -> None:
        position, stream = 0, self._jobs.tail(self._job_id)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), IDLE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            self._take(text, position)
            position += len(text)

    def _catch_up(self, over: bool) -> None:
        """Take what the connection did not bring."""
        try:
            self._take(self._jobs.log(self._job_id), 0)
        except ConnectionError:
            if not over:
                raise
            self._display.note("(the end of the log cannot be read: its node does not answer)")
        if over and self._unfinished:
            self._show(self._unfinished)
            self._unfinished = ""

    def _take(self, text: str, position: int) -> None:
        """Show the complete lines of what is new in a part of the log that begins at a position."""
        new = text[max(0, self._received - position) :]
        self._received = max(self._received, position + len(text))
        *lines, self._unfinished = (self._unfinished + new).split("\n")
        for line in lines:
            self._show(line)

    def _show(self, line: str) -> None:
        if line.startswith(RUN_URL_PREFIX + "http"):
            self.link = line
        self._display.line(line)


def exit_code(state: JobState) -> int:
    """The exit code that a job's state stands for: its command's own; 1 where it failed without one.

    Example:
        >>> [exit_code(JobState(*one, "")) for one in (("SUCCEEDED", 0), ("FAILED", 2), ("FAILED", None))]
        [0, 2, 1]
        >>> [exit_code(JobState(*one, "")) for one in (("STOPPED", None), ("FAILED", -9))]
        [130, 137]
    """
    if state.status == "SUCCEEDED":
        return 0
    if state.status == "STOPPED":
        return STOPPED
    code = state.exit_code or 1
    return code if code > 0 else 128 - code  # as a shell says that a signal ended a command


def watch(jobs: Jobs, job_id: str) -> int:
    """Follow a job to its end. Ctrl-C asks whether to stop it, and by itself stops nothing.

    Returns:
        The job's exit code; 130 where it was stopped or left running, 69 where the cluster has fallen silent.
    """
    follower = JobFollower(jobs, job_id)
    try:
        try:
            state = follower.follow()
        except KeyboardInterrupt:
            if not _asked_to_stop():
                print(f"job {job_id} goes on. {resume_command(jobs, job_id)}")
                return STOPPED
            jobs.stop(job_id)
            print(f"job {job_id} is asked to stop")
            state = follower.follow()
    except KeyboardInterrupt:
        print(f"job {job_id} may go on. {resume_command(jobs, job_id)}")
        return STOPPED
    except ConnectionError as error:
        print(f"{jobs.address} does not answer ({error}); job {job_id} may still be running.")
        print(resume_command(jobs, job_id))
        return LOST
    _sum_up(follower, state, job_id)
    return exit_code(state)


def resume_command(jobs: Jobs, job_id: str) -> str:
    """Say how to follow a job later."""
    return f"follow it: ka-ray submit --follow {job_id} --address {jobs.address}"


def _asked_to_stop() -> bool:
    """Ask on a terminal; anything but a yes, or no terminal, is a no."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input("\nStop the job? [y/N] ").strip().lower() in {"y", "yes"}
    except (KeyboardInterrupt, EOFError):
        print()
        return False


def _sum_up(follower: JobFollower, state: JobState, job_id: str) -> None:
    if follower.link is not None:
        print(follower.link)
    if state.status == "FAILED" and state.exit_code is None:
        print(state.message)  # it did not come to its command, so no log says why
    code = "" if state.exit_code is None else f", exit code {state.exit_code}"
    print(f"job {job_id}: {state.status}{code}", flush=True)
