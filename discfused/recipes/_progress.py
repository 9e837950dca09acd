"""One line on the terminal that tells how far it is."""

import sys
import time

WIDTH = 30  # of the bar, in characters


class Bar:
    """with Bar(steps) as bar: ... bar.advance("what runs now")

    On stderr, and only where that is a terminal: a log gets nothing. Gone when it is done.
    """

    def __init__(self, steps: int):
        self.steps, self.done = steps, 0
        self.start = time.monotonic()
        self.shown = sys.stderr.isatty()

    def advance(self, what: str) -> None:
        self.done += 1
        part = self.done / self.steps
        left = (time.monotonic() - self.start) * (1 - part) / part
        hashes = "#" * int(WIDTH * part)
        self._write(f"[{hashes:{WIDTH}}] {part:4.0%}, {left:3.0f} s left: {what}")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._write("")
        if self.shown:
            print("\r", end="", file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        if self.shown:  # as wide as a terminal is at least, to cover what stood there
            print(f"\r{text:<78.78}", end="", file=sys.stderr, flush=True)
