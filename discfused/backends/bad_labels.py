"""Where the kernels of a GPU report labels out of range."""

import atexit
import ctypes
import sys

import torch


class BadLabels:
    """How many labels of a batch were out of range, told without a synchronisation.

    Kernels write the number into pinned host memory, and only if there are any: no copy, no event,
    nothing that a CUDA graph could not hold, so they do in every replay of one, too. The host looks
    when it comes by the next time, so the error may come one call late, and after the last call
    when Python ends; the rows themselves never count. torch._assert_async would leave the process
    without a usable device, and could not say how many.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flag = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        # Not flag.numpy(): PyTorch does without NumPy, and so does discfused.
        self._host = ctypes.c_int32.from_address(self.flag.data_ptr())
        atexit.register(self.last_words)

    def check(self) -> None:
        count = self._host.value
        if count:
            self._host.value = 0
            raise IndexError(
                f"{count} labels of a batch on {self.device} were out of range: expected class "
                "indices in [0, num_classes) or ignore_index. Their rows did not count."
            )

    def last_words(self) -> None:
        """Too late to raise. What the GPU has not come to by now stays untold."""
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
    """Tell of labels out of range in what the GPUs have done so far.

    Every call of the loss does this. A replay of a CUDA graph calls no Python: ask here, after
    `torch.cuda.synchronize()` for all of it, or now and then for what is done by then.

    Raises:
        IndexError: there were some; each is told once.
    """
    for report in _reports.values():
        report.check()
