"""Where the kernels of a GPU report labels out of range."""

import atexit
import ctypes
import sys
from collections import deque

import torch
from torch import Tensor

from discfused import _batch


class BadLabels:
    """Reports labels out of range without a synchronisation.

    Kernels write the number into pinned host memory, and only if there are any: no copy, no event,
    nothing that a CUDA graph could not hold, so they do in every replay of one, too. The host reads
    it at the next call, so the error may come one call late, and after the last call when Python
    ends; the rows themselves never count. torch._assert_async would leave the process without a
    usable device, and could not say how many.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flag = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        # Not flag.numpy(): PyTorch does without NumPy, and so does discfused.
        self._host = ctypes.c_int32.from_address(self.flag.data_ptr())
        # The batches that a report can be of: it is read one call late at most.
        self._batches: deque[tuple[Tensor, int, int]] = deque(maxlen=2)
        atexit.register(self.at_exit)

    def watch(self, target: Tensor, num_classes: int, ignore_index: int) -> None:
        """What the next kernel looks at."""
        self._batches.append((target, num_classes, ignore_index))

    def check(self) -> None:
        count = self._host.value
        if not count:
            return
        self._host.value = 0
        where = f"in a batch on {self.device}, where such rows did not count"
        if self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            for target, num_classes, ignore_index in self._batches:  # now there is time to look
                try:
                    _batch.check_labels(target, num_classes, ignore_index, waiting=True)
                except IndexError as error:
                    raise IndexError(f"{error}, {where}") from None
        raise IndexError(
            f"{count} labels were out of range {where}: expected class indices in "
            "[0, num_classes) or ignore_index"
        )

    def at_exit(self) -> None:
        """Too late to raise. What the GPU has not done by now is not reported."""
        try:
            self.check()
        except IndexError as error:
            print(f"discfused: {error}", file=sys.stderr)

    def check_now(self) -> None:
        """After a kernel: under the interpreter it has run by now."""
        if self.device.type == "cpu":
            self.check()


_reports: dict[torch.device, BadLabels] = {}


def bad_labels(device: torch.device) -> BadLabels:
    if device not in _reports:
        _reports[device] = BadLabels(device)
    return _reports[device]


def check_labels() -> None:
    """Report labels out of range in what the GPUs have done so far.

    Every call of the loss does this. A replay of a CUDA graph calls no Python: ask here, after
    `torch.cuda.synchronize()` for all of it, or now and then for what is done by then.

    Raises:
        IndexError: there were some; each is reported once.
    """
    for report in _reports.values():
        report.check()
