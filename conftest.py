"""Makes the tests import the discfused that is installed, which holds the compiled library.

This folder holds the sources under the same name, and comes first in sys.path with
`python -m pytest`. Moved to the end it serves only where nothing is installed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
here = [entry for entry in sys.path if Path(entry).resolve() == ROOT]
sys.path[:] = [entry for entry in sys.path if entry not in here] + here


def pytest_report_header() -> str:
    import discfused
    from discfused.backends import _library

    try:
        _library.load()
        library = f"compiled for {', '.join(_library.build_record()['built'])}"
    except _library.LibraryUnavailable as why:
        library = f"without its compiled library ({why})"
    return f"discfused: {Path(discfused.__file__).parent}, {library}"
