"""Imports of optional packages, with an error that names the extra that installs them."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed_by(what: str, extra: str = "inspect") -> Iterator[None]:
    """A context for imports. Its ImportError names the extra."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what} needs {error.name}: pip install 'discfused[{extra}]'", name=error.name
        ) from error
