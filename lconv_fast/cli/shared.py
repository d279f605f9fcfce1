"""What all commands share: the console, errors in one line, and Ctrl-C."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console

from lconv_fast.cli.missing import missing_package

INTERRUPTED = 128 + signal.SIGINT  # what shells report of a command that Ctrl-C ended
PATIENCE = 0.8  # seconds from Ctrl-C until a step that does not return is abandoned

# A file or a pipe has no width of its own; the tables need this much.
console = Console(width=None if sys.stdout.isatty() else 130)

Command = TypeVar("Command", bound=Callable[..., Any])


def fail(reason: object) -> NoReturn:
    """Ends the command with one line on stderr."""
    first = str(reason).strip().splitlines() or [type(reason).__name__]
    sys.exit(f"lconv-fast: {first[0]}")


def need(*packages: str) -> None:
    """Ends the command before it has begun, if one of the packages is missing."""
    for package in packages:
        if sys.modules.get(package, package) is None or importlib.util.find_spec(package) is None:
            missing_package(package)


def command(function: Command) -> Command:
    """A command that answers a missing package in one line, and Ctrl-C within a second and with exit code 130."""

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        try:
            with _interruptible():
                return function(*arguments, **keywords)
        except KeyboardInterrupt:
            console.print("interrupted", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as missing:
            # A missing module of our own is a bug, to be seen in full.
            if (missing.name or "").split(".")[0] == "lconv_fast":
                raise
            missing_package(missing.name)

    return run  # type: ignore[return-value]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as ever; where that waits for a long step of a library, the process is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noticed = threading.Event()

    def raise_interrupt(number: int, frame: object) -> None:
        noticed.set()
        raise KeyboardInterrupt

    bell, ear = socket.socketpair()
    bell.setblocking(False)

    def watch() -> None:
        # The system writes the signal's number at once, whatever the main thread is busy with.
        while number := ear.recv(1):
            if number[0] == signal.SIGINT and not noticed.wait(PATIENCE):
                os.write(2, b"lconv-fast: interrupted in the middle of a step: nothing was written\n")
                os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, raise_interrupt)
    previous = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        signal.signal(signal.SIGINT, before)
        bell.close()
        watcher.join(1.0)
        ear.close()
