"""Work in processes that can be killed: a hung kernel costs its own time-out, a bad access no check but its own."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
# After one of these a process' CUDA context answers nothing but errors.
STICKY = ("illegal memory access", "misaligned address", "device-side assert", "launch failure", "illegal instruction")


def _serve(pipe: Connection) -> None:
    """Calls what comes, and sends back its result or the text of its error."""
    while True:
        try:
            body, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((body(*arguments), None))
        except BaseException as error:
            traceback.print_exc()
            pipe.send((None, f"{type(error).__name__}: {error}"[:600]))


class Worker:
    """A process with a job, or none."""

    def __init__(self) -> None:
        self.job: Any = None
        self.end = 0.0
        self._start()

    def _start(self) -> None:
        self.pipe, other = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def give(self, job: Any, body: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> None:
        self.job, self.end = job, time.monotonic() + seconds
        self.pipe.send((body, arguments))

    def taken(self) -> tuple[Any, str | None]:
        """What the job came to; a process that may be broken is started again."""
        try:
            value, error = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            value, error = None, f"the process ended with code {self.process.exitcode}"
            self.restart()
        if error and any(text in error for text in STICKY):
            self.restart()
        self.job = None
        return value, error

    def restart(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_all(
    jobs: Iterable[tuple[Any, Callable[..., Any], tuple[Any, ...]]], workers: int, seconds: float, until: float
) -> Iterator[tuple[Any, Any, str | None]]:
    """Each job's name, value and error, as they end: `workers` at a time, `seconds` each, none begun after `until`."""
    waiting = list(jobs)[::-1]
    pool = [Worker() for _ in range(max(1, min(workers, len(waiting))))]
    try:
        while True:
            for worker in pool:
                if worker.job is None and waiting and time.monotonic() < until:
                    name, body, arguments = waiting.pop()
                    worker.give(name, body, arguments, seconds)
            busy = [worker for worker in pool if worker.job is not None]
            if not busy:
                break
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                name = worker.job
                if worker.pipe in ready:
                    value, error = worker.taken()
                    yield name, value, error
                elif time.monotonic() > worker.end:
                    worker.job = None
                    worker.restart()
                    yield name, None, f"not done after {seconds:.0f} s, killed"
        for name, *_ in waiting[::-1]:
            yield name, None, "skipped: no time left"
    finally:
        for worker in pool:
            worker.stop()
