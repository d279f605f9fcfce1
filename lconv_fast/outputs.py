"""Folders of results: checked before the work begins, filled in a temporary place, and renamed when complete.

A run that fails or is stopped leaves what was there before; a folder never holds half of one run and half of another.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def check_folder(folder: str | Path, names: Sequence[str], inputs: Sequence[str | Path] = ()) -> None:
    """Raises OSError where `folder` cannot take files of these names, or one of them is an input. Leaves nothing."""
    folder = Path(folder)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; expected a folder, or a name that is free")
        if path.is_symlink() and not path.exists():
            raise FileExistsError(f"{path} is a link to nothing; expected a folder, or a name that is free")
    for name in names:
        target = folder / name
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder; a file of that name is to be written")
        for given in inputs:
            if target.exists() and Path(given).exists() and target.samefile(given):
                raise FileExistsError(f"{target} is the input; expected another folder for the result")
    made = _make(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for path in reversed(made):
            path.rmdir()


@contextmanager
def filled(folder: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder beside the result; in the end its files replace those of `names` in `folder`, all of them.

    What an earlier run left under these names and this one did not write is removed: it tells of other data.
    """
    folder = Path(folder)
    check_folder(folder, names)
    made = _make(folder)
    place = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        yield place
        written = sorted(p.relative_to(place) for p in place.rglob("*") if p.is_file())
        for path in written:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(place / path, folder / path)
        for name in names:
            if Path(name) not in written:
                (folder / name).unlink(missing_ok=True)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        for path in reversed(made):
            if not any(path.iterdir()):
                path.rmdir()
        raise
    shutil.rmtree(place, ignore_errors=True)


def _make(folder: Path) -> list[Path]:
    """Makes a folder with its parents; returns those that were missing, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]
