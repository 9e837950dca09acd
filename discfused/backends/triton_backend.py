"""The contract on Triton kernels: what CUDA (and ROCm) tensors get by default.

Launches for hard labels, and bytes (e: bytes of a feature, a: 4, or 8 for float64):

                        N <= 1024             N > 1024
    members    1        labels, from cache    labels, and reads N D e (the moments)
    histogram  1        reads N D e,          reads N D e, from L2 as far as it fits;
                        writes S D a          writes S D a, with the slope 2 S D a
    terms      2        reads 3 S D a         with the slope 4 S D a, from L2 as far as it fits
    gradient   1        reads N D e, gathers N D a (from L2), writes N D e

Forward keeps the slope where C <= N and a gradient is wanted. Else (N > 1024, C > N) the gradient
takes a launch more, and reads and gathers twice. Beyond SCAN_ROWS or SCAN_COMPARISONS members sorts
the rows with PyTorch's ops. Of slots longer than a chunk of rows (slot_rows_kernel) parts of the
sums wait in Histogram.carry until terms reads the table. Nothing depends on C where C > N.
"""

import ctypes
import math

import torch
from torch import Tensor

from discfused.backends import triton_soft, triton_sorted
from discfused.backends.contract import (
    ACTIVATIONS,
    Histogram,
    Labels,
    Members,
    Pull,
    Terms,
    ThroughTable,
    accumulation_dtype,
)
from discfused.backends.triton_runtime import bad_labels, interpreted, kernels, missing, on
from discfused.backends.triton_sorted import Order

_CODE = {activation: code for code, activation in enumerate(ACTIVATIONS)}

# Finding the order of rows by counting costs N * S comparisons, or N * N; beyond these, a sort.
SCAN_ROWS = 32768
SCAN_COMPARISONS = 1 << 24


def _whole(name: str, N: int, dtype: torch.dtype) -> dict | None:
    """The block in which all rows of a few columns fit into registers."""
    for blocks in kernels().BLOCKS[dtype][name]:
        if blocks["ROWS"] >= N:
            return blocks
    return None


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _parts(name: str, rows: int, columns: int, least: int) -> int:
    """Into how many parts of at least so many rows to split work on so many blocks of columns."""
    wanted = _cdiv(kernels().PROGRAMS[name], max(columns, 1))
    return max(1, min(wanted, _cdiv(rows, least)))


def _split(number: float) -> tuple[float, float]:
    """Triton passes Python's numbers as float32: the number so rounded, and the rest."""
    head = ctypes.c_float(number).value
    return head, number - head if math.isfinite(head) else 0.0


class TritonBackend(ThroughTable):
    name = "triton"
    coef_rows = 6

    @property
    def device_type(self) -> str:
        return "cpu" if interpreted() else "cuda"

    def unavailable(self) -> str | None:
        return missing(interpreted())

    def keeps_slope(self, features: Tensor, num_classes: int) -> bool:
        # With a slot for every row the slope takes as much memory as the features in float32, and
        # writing and reading it (8 bytes an element) costs what the second look does (2 or 4 of x
        # and 4 of the table).
        N, dtype = features.shape[0], accumulation_dtype(features.dtype)
        whole = (_whole(name, N, dtype) for name in ("whole_columns", "whole_gradient"))
        return num_classes <= N and not any(whole)

    def members(self, labels: Labels, slots: int, features: Tensor, activation: str) -> Members:
        C, ignore_index = labels[3:]
        (N, D), device = features.shape, features.device
        dtype = accumulation_dtype(features.dtype)
        bad = bad_labels(device)
        bad.check()
        if N == 0:
            zero = torch.zeros(slots + 1, dtype=dtype, device=device)
            slot_class = torch.arange(slots, device=device)
            rows = torch.empty(0, dtype=torch.int32, device=device), zero[:0]
            return Members(*rows, total=zero[slots], slot_class=slot_class, share=zero[:slots])
        labels = Labels(*(t if t is None else t.contiguous() for t in labels[:3]), C, ignore_index)
        integers, floats = ({"dtype": t, "device": device} for t in (torch.int32, dtype))
        k, present = kernels(), slots != C
        blocks = k.BLOCKS[dtype]["present_slots" if present else "class_slots"]
        moment_blocks = k.BLOCKS[dtype]["moments"]
        with on(features):
            if N > SCAN_ROWS or N * slots > SCAN_COMPARISONS:
                programs = 0
                found = triton_sorted.members(k, labels, slots, dtype, bad.flag)
            else:  # + 1: the rows that do not count have a slot, too
                programs = _cdiv(N if present else slots + 1, blocks["SLOTS"])
                order = Order(*(torch.empty((2, n), **integers) for n in (N, slots)))
                found = Members(
                    torch.empty(N, **integers), torch.empty(N, **floats), torch.empty((), **floats),
                    torch.empty(slots, dtype=torch.int64, device=device),
                    torch.empty(slots, **floats), extra=order,
                )  # fmt: skip
            # Tensors that are not there are never read; any pointer will do.
            x, columns, parts = (found.total, 0, 0), 0, 0
            moments = found.total
            if _whole("whole_columns", N, dtype) is None:
                columns = _cdiv(D, moment_blocks["COLS"])
                parts = _parts("moments", N, columns, 2 * moment_blocks["MOMENT_ROWS"])
                x, moments = (features, *features.stride()), torch.empty((parts, 2, D), **floats)
                found = found._replace(extra=found.extra._replace(moments=moments))
            if programs + columns * parts:
                target, weight, sample_weight = labels[:3]
                k.members_kernel[(programs + columns * parts,)](
                    target, found.total if weight is None else weight,
                    found.total if sample_weight is None else sample_weight,
                    found.slot, found.row_weight, *found.extra[:2], found.share, found.slot_class,
                    found.total, bad.flag, *x, moments, N, slots, C, D if parts else 0,
                    ignore_index, programs, parts,
                    PRESENT=present, MOMENTS=parts > 0, WEIGHTED=weight is not None,
                    SAMPLE_WEIGHTED=sample_weight is not None,
                    ACT=_CODE[activation] if parts else 0, **moment_blocks, **blocks,
                )  # fmt: skip
        bad.check_now()
        return found

    def histogram(
        self,
        features: Tensor,
        members: Members,
        activation: str,
        center: bool,
        mean: Tensor | None = None,
        slope: bool = False,
    ) -> Histogram:
        if members.soft is not None:
            with on(features):
                return triton_soft.histogram(kernels(), features, members, activation, center, mean)
        (N, D), S, dtype = features.shape, members.share.shape[0], members.row_weight.dtype
        floats = {"dtype": dtype, "device": features.device}
        if N == 0:
            zero = torch.zeros((S + 2, D), **floats)
            return Histogram(zero[0] if center else None, zero[2:], zero[1])
        order, span, moments = members.extra
        k, given = kernels(), mean is not None
        if not given:
            mean = torch.empty(D, **floats)
        magnitude, table = torch.empty(D, **floats), torch.empty((S, D), **floats)
        flags = {"ACT": _CODE[activation], "CENTER": center, "GIVEN": given}
        x, rows = (features, *features.stride()), (members.row_weight, order, span, members.total)
        if moments is None:
            blocks = _whole("whole_columns", N, dtype)
            with on(features):
                k.whole_columns_kernel[(_cdiv(D, blocks["COLS"]),)](
                    *x, *rows, mean, magnitude, table, N, S, D, **flags, **blocks
                )
            return Histogram(mean if center else None, table, magnitude)
        blocks = k.BLOCKS[dtype]["slot_rows"]
        columns = _cdiv(D, blocks["COLS"])
        chunks = _parts("slot_rows", N, columns, 8 * blocks["ROWS"])
        slopes = torch.empty((S, D), **floats) if slope else None
        carry = torch.empty((2 if slope else 1, chunks, D), **floats)
        carry_slot = torch.empty(chunks, dtype=torch.int32, device=features.device)
        with on(features):
            k.slot_rows_kernel[(columns * chunks,)](
                *x, *rows, moments, mean, magnitude, table, slopes if slope else table,
                carry, carry_slot, N, S, D, moments.shape[0], chunks,
                SLOPE=slope, **flags, **blocks,
            )  # fmt: skip
        return Histogram(
            mean if center else None, table, magnitude, slopes, carry=(carry, carry_slot)
        )

    def complete(self, histogram: Histogram) -> None:
        _, table, _, slope, (carry, carry_slot) = histogram
        D, k = table.shape[1], kernels()
        blocks = k.BLOCKS[table.dtype]["carry"]
        with on(table):
            for sums, each in zip((table, slope), carry, strict=False):
                k.carry_kernel[(_cdiv(D, blocks["COLS"]),)](
                    sums, each, carry_slot, D, carry_slot.shape[0], **blocks
                )

    def terms(
        self,
        histogram: Histogram,
        prior: Tensor,
        absent: Tensor | None,
        reverse: bool,
        eps: float,
        gini_weight: float,
        kl_weight: float,
    ) -> Terms:
        table, magnitude = histogram.table.contiguous(), histogram.magnitude
        # Tensors that are not there are never read; any pointer will do.
        slope = table if histogram.slope is None else histogram.slope.contiguous()
        carry, carry_slot = histogram.carry or (table, magnitude.new_empty(0, dtype=torch.int32))
        chunks, has_slope = carry_slot.shape[0], histogram.slope is not None
        S, D = table.shape
        k = kernels()
        blocks = k.BLOCKS[table.dtype]["feature_terms"]
        parts = _cdiv(D, blocks["COLS"])
        feature_coef = table.new_empty((self.coef_rows, D))
        slot_coef = table.new_empty(S)
        sums = table.new_empty((parts, S + 2))
        penalty, gini, kl = (table.new_empty(()) for _ in range(3))
        with on(table):
            k.feature_terms_kernel[(parts,)](
                table, slope, carry, carry_slot, magnitude, feature_coef, sums, S, D, chunks, eps,
                SLOPE=has_slope and chunks > 0, **blocks,
            )  # fmt: skip
            blocks = k.BLOCKS[table.dtype]["class_terms"]
            k.class_terms_kernel[(_cdiv(D, blocks["COLS"]),)](
                table, slope, feature_coef, sums, prior.contiguous(),
                gini if absent is None else absent,
                slot_coef, penalty, gini, kl, S, D, parts, *_split(gini_weight), *_split(kl_weight),
                SLOPE=has_slope, ABSENT=absent is not None, REVERSE=reverse, **blocks,
            )  # fmt: skip
        return Terms(penalty, gini, kl, feature_coef, slot_coef)

    def gradient(
        self,
        features: Tensor,
        members: Members,
        mean: Tensor | None,
        table: Tensor,
        activation: str,
        pull: Pull | None,
    ) -> Tensor:
        slot, row_weight, total, soft = *members[:3], members.soft
        N, D = features.shape
        bad_labels(features.device).check()
        dx = torch.empty((N, D), dtype=features.dtype, device=features.device)
        if N == 0:
            return dx
        k, dtype = kernels(), row_weight.dtype
        table = table.contiguous()
        blocks, whole = k.BLOCKS[dtype]["gradient"], _whole("whole_gradient", N, dtype)
        rows_each = 8 * blocks["ROWS"]
        if mean is None:
            shift = "none"
        elif pull is not None and pull.slope:
            shift = "slope"
        elif whole is not None:
            shift, blocks = "whole", {**blocks, **whole}
            rows_each = blocks["ROWS"]
        else:
            shift = "sums"
        with on(features):
            if soft is not None:
                slot, table, pull = row_weight, triton_soft.row_gradient(k, soft, table, pull), None
            *tensors, gini_weight, kl_weight = pull[:6] if pull else (*[total] * 4, 1.0, 1.0)
            arguments = (
                features, *features.stride(), slot, row_weight, total if mean is None else mean,
                table, *tensors, *_split(gini_weight), *_split(kl_weight),
            )  # fmt: skip
            flags = {
                "ACT": _CODE[activation], "PULL": pull is not None, "SOFT": soft is not None
            }  # fmt: skip
            parts, sums = 1, total
            if shift == "sums":
                first = k.BLOCKS[dtype]["gradient_sum"]
                columns = _cdiv(D, first["COLS"])
                parts = _parts("gradient_sum", N, columns, 4 * first["ROWS"])
                parts = min(parts, blocks["PARTS"])
                sums = row_weight.new_empty((parts, D))
                k.gradient_sum_kernel[(columns * parts,)](
                    *arguments, sums, N, D, parts, **flags, **first
                )
            grid = (_cdiv(N, rows_each) * _cdiv(D, blocks["COLS"]),)
            k.gradient_kernel[grid](
                *arguments, sums, N, D, parts, total, dx, rows_each, SHIFT=shift, **flags, **blocks
            )
        return dx
