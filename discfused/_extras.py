"""Packages that only some users need: an import without them says which extra brings them."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed_by(what: str, extra: str = "inspect") -> Iterator[None]:
    """Around imports; ImportError names the extra."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what} needs {error.name}: pip install 'discfused[{extra}]'", name=error.name
        ) from error
