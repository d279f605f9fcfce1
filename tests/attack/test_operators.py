"""Direct calls of the operators with malformed arguments, one process each: none ends it, hangs, or gives a result that
the definition does not. `make sanitize` runs them on the sanitized build, which notices reads outside."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from malformed import outcome

SCRIPT = Path(__file__).with_name("malformed.py")


def run(first: int, count: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(first), str(count), "60"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_malformed_calls():
    run(0, 120)


@pytest.mark.full
def test_thousands_of_malformed_calls():
    run(random.randrange(10**6), 3000)


def wrong() -> None:
    raise AssertionError


@pytest.mark.parametrize(
    ("call", "how"),
    [
        (lambda: None, ""),
        (lambda: int("x"), ""),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "signal 11"),
        (lambda: time.sleep(30), "signal 14"),
        (lambda: os._exit(1), "exit code 1"),
        (wrong, "exit code 4"),
    ],
)
def test_how_a_process_ends_is_noticed(call, how):
    assert outcome(call, 1).startswith(how) if how else outcome(call, 1) == ""
