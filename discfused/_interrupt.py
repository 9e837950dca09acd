"""Ctrl-C between two steps, not in the middle of one."""

import signal
import threading
from types import FrameType


class Watch:
    """`asked` becomes true with the first SIGINT or SIGTERM; the second acts as it always does.

    alone: whether this process trains alone. Several could not agree on a step to stop after, so
    for them signals act as always, and the last checkpoint stands.
    """

    SIGNALS = signal.SIGINT, signal.SIGTERM

    def __init__(self, alone: bool):
        self.asked = False
        # Python delivers signals to the main thread only.
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
