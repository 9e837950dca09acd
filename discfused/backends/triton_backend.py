"""The contract on Triton kernels: what CUDA (and ROCm) tensors get by default.

Launches for hard labels, and bytes (e: bytes of a feature, a: 4, or 8 for float64):

    members    1        labels, from cache; a sort instead beyond SCAN_ROWS or SCAN_COMPARISONS
    histogram  1        N <= 1024: reads N D e, writes S D a
               3 or 4   else (moments, fold, slot_rows, fold if parts > 1): reads 2 N D e, once
                        of it from L2 as far as it fits; writes S D a
    terms      2        reads 3 S D a, from L2 as far as it fits
    gradient   1        N <= 1024, or not centred: reads N D e, writes N D e, gathers N D a
               2        else (gradient_sum, gradient): reads and gathers twice

Nothing depends on C where C > N. To be measured: whether forward should keep, for every slot, the
sum of n phi', from which the correction for the mean follows without the second look at x.
"""

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


def _parts(rows: int, blocks: dict, programs: int, most: int) -> int:
    """Into how many parts to split work of `programs` programs, each walking so many rows."""
    wanted = _cdiv(kernels().PROGRAMS, programs)
    return max(1, min(wanted, _cdiv(rows, 4 * blocks["ROWS"]), most))


def _large_histogram(features, rows, total, S, code, center, mean) -> Histogram:
    """Features whose columns do not fit into registers: a pass for the mean, one for the table."""
    k = kernels()
    row_weight = rows[0]
    N, D = features.shape
    table_of = k.BLOCKS[row_weight.dtype]
    blocks, fold = table_of["moments"], table_of["fold"]
    columns = _cdiv(D, blocks["COLS"])
    parts = _parts(N, blocks, columns, N)
    sums = row_weight.new_empty((parts, 2, D))
    moments = row_weight.new_empty((2, D))
    k.moments_kernel[(columns * parts,)](
        features, *features.stride(), row_weight, sums, N, D, parts,
        ACT=code, **blocks,
    )  # fmt: skip
    k.fold_kernel[(_cdiv(2 * D, fold["COLS"]),)](sums, moments, total, parts, 2 * D, D, **fold)
    if mean is None:
        mean = moments[0]

    wide = table_of["slot_rows_wide"]
    blocks = wide if wide["COLS"] < 2 * D else table_of["slot_rows"]
    columns = _cdiv(D, blocks["COLS"])
    parts = _parts(_cdiv(N, S), blocks, columns * S, N)
    table = row_weight.new_empty((parts, S, D))
    k.slot_rows_kernel[(columns * S * parts,)](
        features, *features.stride(), *rows, mean, table, S, D, parts,
        ACT=code, CENTER=center, **blocks,
    )  # fmt: skip
    if parts > 1:
        sums, table = table, row_weight.new_empty((S, D))
        grid = (_cdiv(S * D, fold["COLS"]),)
        k.fold_kernel[grid](sums, table, total, parts, S * D, 0, **fold)
    return Histogram(mean if center else None, table.view(S, D), moments[1])


class TritonBackend(ThroughTable):
    name = "triton"
    coef_rows = 6

    @property
    def device_type(self) -> str:
        return "cpu" if interpreted() else "cuda"

    def unavailable(self) -> str | None:
        return missing(interpreted())

    def keeps_slope(self, features: Tensor, slots: int) -> bool:
        return False

    def members(self, labels: Labels, slots: int, features: Tensor, activation: str) -> Members:
        target, weight, sample_weight, C, ignore_index = labels
        N, device, dtype = target.shape[0], target.device, accumulation_dtype(features.dtype)
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
        if N > SCAN_ROWS or N * slots > SCAN_COMPARISONS:
            with on(target):
                result = triton_sorted.members(kernels(), labels, slots, dtype, bad.flag)
            bad.check_now()
            return result
        row_weight, total = torch.empty(N, **floats), torch.empty((), **floats)
        slot, order = torch.empty(N, **integers), torch.empty(N, **integers)
        span, share = torch.empty((2, slots), **integers), torch.empty(slots, **floats)
        slot_class = torch.empty(slots, dtype=torch.int64, device=device)
        k = kernels()
        if slots == C:  # + 1: slot S holds the rows that do not count
            kernel, blocks = k.class_slots_kernel, k.BLOCKS[dtype]["class_slots"]
            grid = (_cdiv(slots + 1, blocks["SLOTS"]),)
        else:
            kernel, blocks = k.present_slots_kernel, k.BLOCKS[dtype]["present_slots"]
            grid = (_cdiv(N, blocks["ROWS"]),)
        with on(target):
            kernel[grid](
                target, total if weight is None else weight,
                total if sample_weight is None else sample_weight,
                slot, row_weight, order, span, share, slot_class, total, bad.flag,
                N, slots, C, ignore_index,
                WEIGHTED=weight is not None, SAMPLE_WEIGHTED=sample_weight is not None, **blocks,
            )  # fmt: skip
        bad.check_now()
        extra = triton_sorted.Order(order, span)
        return Members(slot, row_weight, total, slot_class, share, extra=extra)

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
        slot, row_weight, total = members[:3]
        (N, D), S, dtype = features.shape, members.share.shape[0], row_weight.dtype
        floats = {"dtype": dtype, "device": features.device}
        if N == 0:
            zero = torch.zeros((S + 2, D), **floats)
            return Histogram(zero[0] if center else None, zero[2:], zero[1])
        if members.extra is None:
            members = triton_sorted.by_slot(members)
        rows = row_weight, *members.extra
        k = kernels()
        code = _CODE[activation]
        with on(features):
            blocks = _whole("whole_columns", N, dtype)
            if blocks is None:
                return _large_histogram(features, rows, total, S, code, center, mean)
            given = mean is not None
            if not given:
                mean = torch.empty(D, **floats)
            magnitude, table = torch.empty(D, **floats), torch.empty((S, D), **floats)
            k.whole_columns_kernel[(_cdiv(D, blocks["COLS"]),)](
                features, *features.stride(), slot, row_weight, total, *rows[1:], mean, magnitude,
                table, N, S, D, ACT=code, CENTER=center, GIVEN=given, **blocks,
            )  # fmt: skip
        return Histogram(mean if center else None, table, magnitude)

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
                table, magnitude, feature_coef, sums, S, D, eps, **blocks
            )
            blocks = k.BLOCKS[table.dtype]["class_terms"]
            k.class_terms_kernel[(_cdiv(D, blocks["COLS"]),)](
                table, feature_coef, sums, prior.contiguous(), gini if absent is None else absent,
                slot_coef, penalty, gini, kl, S, D, parts, gini_weight, kl_weight,
                ABSENT=absent is not None, REVERSE=reverse, **blocks,
            )  # fmt: skip
        if table.dtype == torch.float64:  # Triton passes Python's numbers as float32
            penalty = gini_weight * gini + kl_weight * kl
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
        (N, D), center = features.shape, mean is not None
        bad_labels(features.device).check()
        dx = torch.empty((N, D), dtype=features.dtype, device=features.device)
        if N == 0:
            return dx
        k = kernels()
        table = table.contiguous()
        if pull is not None and table.dtype == torch.float64:  # as in terms
            pull = pull._replace(
                grad_gini=pull.grad_gini * pull.gini_weight, gini_weight=1.0,
                grad_kl=pull.grad_kl * pull.kl_weight, kl_weight=1.0,
            )  # fmt: skip
        with on(features):
            if soft is not None:
                slot, table, pull = row_weight, triton_soft.row_gradient(k, soft, table, pull), None
            # Tensors that are not there are never read; any pointer will do.
            arguments = (
                features, *features.stride(), slot, row_weight, mean if center else total, table,
                *(pull[:6] if pull else (total, total, total, total, 1.0, 1.0)),
            )  # fmt: skip
            flags = {
                "ACT": _CODE[activation], "PULL": pull is not None, "SOFT": soft is not None
            }  # fmt: skip
            table_of = k.BLOCKS[row_weight.dtype]
            blocks, parts, sums = table_of["gradient"], 1, total
            rows_each = 8 * blocks["ROWS"]
            whole = _whole("whole_gradient", N, row_weight.dtype) if center else None
            if whole is not None:
                blocks = {**blocks, **whole}
                rows_each = blocks["ROWS"]
            elif center:
                first = table_of["gradient_sum"]
                columns = _cdiv(D, first["COLS"])
                parts = _parts(N, first, columns, blocks["PARTS"])
                sums = row_weight.new_empty((parts, D))
                k.gradient_sum_kernel[(columns * parts,)](
                    *arguments, sums, N, D, parts, **flags, **first
                )
            grid = (_cdiv(N, rows_each) * _cdiv(D, blocks["COLS"]),)
            k.gradient_kernel[grid](
                *arguments, sums, N, D, parts, total, dx, rows_each,
                CENTER=center, WHOLE=whole is not None, **flags, **blocks,
            )  # fmt: skip
        return dx
