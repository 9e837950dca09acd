"""The contract on Triton kernels: what CUDA (and ROCm) tensors get by default.

Launches, for hard labels:

    members    1 (class_slots or present_slots); beyond SCAN_ROWS a sort instead
    histogram  1 for N <= 1024: x is read once and stays in registers.
               Else moments, fold, slot_rows (x is read twice; the second time from L2 as far as it
               fits), and one more fold where few slots leave the GPU idle
    terms      2
    gradient   1 for N <= 1024 or uncentred features, else 2 (sum, gradient)

Least bytes: N D x forward, 2 N D x backward, and S D of the table three times (written, read for
the terms, gathered in backward), mostly in L2. Nothing depends on C where C > N.
"""

import contextlib
import functools
import os
import shutil
import sysconfig

import torch
from torch import Tensor

from discfused.backends import triton_soft
from discfused.backends.contract import (
    ACTIVATIONS,
    Histogram,
    Labels,
    Members,
    Pull,
    Terms,
)

_CODE = {activation: code for code, activation in enumerate(ACTIVATIONS)}

# Finding the order of rows by counting costs N * S comparisons, or N * N; beyond these, a sort.
SCAN_ROWS = 32768
SCAN_COMPARISONS = 1 << 24


def interpreted() -> bool:
    """Triton's own switch: its kernels run in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _missing(interpreted: bool) -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return (
            f"Triton cannot be imported ({error}): pip install triton, in the release that this "
            "PyTorch asks for (its CUDA and ROCm builds bring one)"
        )
    if interpreted:
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU: install its CUDA or ROCm build and a driver, or use the CPU"
    # Triton compiles a small launcher in C when a kernel first runs.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler: install gcc or clang, or set CC"
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        return f"Triton's launcher needs {header}: install python3-dev (python3-devel)"
    return None


@functools.cache
def kernels():
    """The module of kernels, imported when first used: `import discfused` needs no Triton."""
    from discfused.backends import triton_kernels

    return triton_kernels


def _on(tensor: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


class BadLabels:
    """How many labels of a batch were out of range, told without a synchronisation.

    Kernels write the number into pinned host memory, and only if there are any: no copy, no event,
    nothing that a CUDA graph could not hold. The host looks when it comes by the next time, so the
    error may come one call late; the rows themselves never count. torch._assert_async would leave
    the process without a usable device, and could not say how many.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flag = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._host = self.flag.numpy()

    def check(self) -> None:
        count = int(self._host[0])
        if count:
            self._host[0] = 0
            raise IndexError(
                f"{count} labels of a batch on {self.device} were out of range: expected class "
                "indices in [0, num_classes) or ignore_index. Their rows did not count."
            )


@functools.cache
def bad_labels(device: torch.device) -> BadLabels:
    return BadLabels(device)


class OrderedMembers(Members):
    """Members, and the order in which histogram walks their rows (see triton_slots)."""

    order: Tensor  # [N] int32
    span: Tensor  # [2, S] int32


def _ordered(members: Members, order: Tensor, span: Tensor) -> OrderedMembers:
    ordered = OrderedMembers(*members)
    ordered.order, ordered.span = order, span
    return ordered


class TritonBackend:
    name = "triton"

    @property
    def device_type(self) -> str:
        return "cpu" if interpreted() else "cuda"

    def unavailable(self) -> str | None:
        return _missing(interpreted())

    def members(self, labels: Labels, slots: int, dtype: torch.dtype) -> Members:
        target, weight, sample_weight, C, ignore_index = labels
        N, device = target.shape[0], target.device
        by_class = slots == C
        bad = bad_labels(device)
        bad.check()
        if N == 0:
            zero = torch.zeros(slots + 1, dtype=dtype, device=device)
            slot_class = torch.arange(slots, device=device)
            rows = torch.empty(0, dtype=torch.int32, device=device), zero[:0]
            return Members(*rows, total=zero[slots], slot_class=slot_class, share=zero[:slots])
        target, weight, sample_weight = (
            t if t is None else t.contiguous() for t in (target, weight, sample_weight)
        )
        integers = {"dtype": torch.int32, "device": device}
        floats = {"dtype": dtype, "device": device}
        row_weight, order = torch.empty(N, **floats), torch.empty(N, **integers)
        total, share = torch.empty((), **floats), torch.empty(slots, **floats)
        span = torch.empty((2, slots), **integers)
        if N > SCAN_ROWS or N * slots > SCAN_COMPARISONS:
            return self._sorted(labels, slots, dtype, bad)
        slot = torch.empty(N, **integers)
        slot_class = torch.empty(slots, dtype=torch.int64, device=device)
        k = kernels()
        if by_class:  # + 1: slot S holds the rows that do not count
            kernel, blocks = k.class_slots_kernel, k.BLOCKS["class_slots"]
            grid = (_cdiv(slots + 1, blocks["SLOTS"]),)
        else:
            kernel, blocks = k.present_slots_kernel, k.BLOCKS["present_slots"]
            grid = (_cdiv(N, blocks["ROWS"]),)
        with _on(target):
            kernel[grid](
                target, total if weight is None else weight,
                total if sample_weight is None else sample_weight,
                slot, row_weight, order, span, share, slot_class, total, bad.flag,
                N, slots, C, ignore_index,
                WEIGHTED=weight is not None, SAMPLE_WEIGHTED=sample_weight is not None, **blocks,
            )  # fmt: skip
        if not target.is_cuda:
            bad.check()
        members = Members(slot, row_weight, total, slot_class, share)
        return _ordered(members, order, span)

    def histogram(
        self,
        features: Tensor,
        members: Members,
        activation: str,
        center: bool,
        mean: Tensor | None = None,
    ) -> Histogram:
        if members.soft is not None:
            return triton_soft.histogram(features, members, activation, center, mean)
        slot, row_weight, total, _, share, _ = members
        (N, D), S, dtype = features.shape, share.shape[0], row_weight.dtype
        floats = {"dtype": dtype, "device": features.device}
        if N == 0:
            zero = torch.zeros((S + 2, D), **floats)
            return Histogram(zero[0] if center else None, zero[2:], zero[1])
        if not isinstance(members, OrderedMembers):
            members = _sort_by_slot(members)
        rows = row_weight, members.order, members.span
        k = kernels()
        code = _CODE[activation]
        with _on(features):
            for blocks in k.WHOLE_COLUMNS:
                if blocks["ROWS"] >= N:
                    break
            else:
                return self._large_histogram(features, rows, total, S, code, center, mean)
            given = mean is not None
            if not given:
                mean = torch.empty(D, **floats)
            magnitude, table = torch.empty(D, **floats), torch.empty((S, D), **floats)
            k.whole_columns_kernel[(_cdiv(D, blocks["COLS"]),)](
                features, *features.stride(), slot, row_weight, total, *rows[1:], mean, magnitude,
                table, N, S, D, ACT=code, CENTER=center, GIVEN=given, **blocks,
            )  # fmt: skip
        return Histogram(mean if center else None, table, magnitude)
