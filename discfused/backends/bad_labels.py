"""Reports of GPU kernels on labels out of range."""

import atexit
import ctypes
import sys
from collections import deque

import torch
from torch import Tensor

from discfused import _batch


class BadLabels:
    """Reports labels out of range without host synchronization.

    Kernels write the number of such labels into pinned host memory, also in replays of a CUDA
    graph. The host reads it at every call and when Python ends, so the error is late by as many
    calls as the host is ahead. Such rows never count. torch._assert_async would make the device
    unusable for the process, and does not report the number.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flag = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        # flag.numpy() would need NumPy, which PyTorch does not require.
        self._host = ctypes.c_int32.from_address(self.flag.data_ptr())
        # The batches that a report can refer to, if the kernels are at most two calls behind.
        self._batches: deque[tuple[Tensor, int, int]] = deque(maxlen=3)
        atexit.register(self.at_exit)

    def watch(self, target: Tensor, num_classes: int, ignore_index: int) -> None:
        """Remembers the labels of the next kernel, to name them in an error.

        Not from compiled code: what it hands to an operator may be memory of a CUDA graph
        (mode="reduce-overhead"), which nothing may hold on to.
        """
        self._batches.append((target, num_classes, ignore_index))

    def check(self) -> None:
        count = self._host.value
        if not count:
            return
        self._host.value = 0
        where = f"in a batch on {self.device}, where such rows did not count"
        batches = tuple(self._batches)
        self._batches.clear()  # the next report is of others
        if self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            for batch in batches:
                try:
                    _batch.check_labels(*batch, waiting=True)  # after an error waiting is fine
                except IndexError as error:
                    raise IndexError(f"{error}, {where}") from None
                except RuntimeError:  # a CUDA graph that made the labels has run again since
                    pass
        raise IndexError(
            f"{count} labels were out of range {where}: expected class indices in "
            "[0, num_classes) or ignore_index"
        )

    def at_exit(self) -> None:
        """Prints the error: it is too late to raise. Unfinished kernels are not reported."""
        try:
            self.check()
        except IndexError as error:
            print(f"discfused: {error}", file=sys.stderr)

    def check_now(self) -> None:
        """Checks after a kernel in Triton's interpreter, which has finished."""
        if self.device.type == "cpu":
            self.check()


_reports: dict[torch.device, BadLabels] = {}


def bad_labels(device: torch.device) -> BadLabels:
    if device not in _reports:
        _reports[device] = BadLabels(device)
    return _reports[device]


def check_labels() -> None:
    """Raises if kernels that have finished found labels out of range.

    Every call of the loss does this check. A replay of a CUDA graph calls no Python, so call this
    function after it: after `torch.cuda.synchronize()` for a complete check, or from time to time.

    Raises:
        IndexError: labels were out of range. Each report is raised once.
    """
    for report in _reports.values():
        report.check()
