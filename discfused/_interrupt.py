"""Ctrl-C that takes effect between two steps."""

import signal
import threading
from types import FrameType


class Watch:
    """The first SIGINT or SIGTERM sets `asked`. The second has its usual effect.

    alone: whether this process trains alone. Several processes could not agree on the last step, so
    for them signals have their usual effect, and the last checkpoint remains.
    """

    SIGNALS = signal.SIGINT, signal.SIGTERM

    def __init__(self, alone: bool):
        self.asked = False
        # Only the main thread receives signals.
        self.active = alone and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Watch":
        if self.active:
            self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self._restore()
