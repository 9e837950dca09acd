"""Atomic writes, and a check that a folder is writable."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path with the same suffix), then renames the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(name: str, folder: Path) -> None:
    """Creates the folder and writes to it, so that a training does not fail at its end.

    Raises:
        ValueError: it cannot be created or written.
    """
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{name} is {str(folder)!r}, expected a folder that can be created and written "
            f"({error.strerror}): name another one"
        ) from error
