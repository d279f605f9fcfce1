"""The console script `lconv-fast`. Ctrl-C ends it at any time: also while the imports run, which take seconds."""

from __future__ import annotations

import os
import signal


def _leave(number: int, frame: object) -> None:
    # No exception: an import that one passes through may turn it into another, and the traceback tells nobody anything.
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def main() -> None:
    # Commands set a handler of their own while they run, and give back this one.
    signal.signal(signal.SIGINT, _leave)
    from lconv_fast.cli import main as run

    run()
