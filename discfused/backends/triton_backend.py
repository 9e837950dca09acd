"""The contract on Triton kernels: what CUDA (and ROCm) tensors get by default.

Launches for hard labels, and bytes (e: bytes of a feature, a: 4, or 8 for float64):

    rows        compare_rows     labels, from cache
       N > 1024 merge_rows       the same; twice where N > 32768
    terms       table            reads N D e, writes S D a
       N > 256, or 32 S: fold    parts of slots that were cut
                column_terms     reads S D a, from L2 as far as it fits; twice where S > 1024
       S <= 256 whole_terms      reads S D a
       else     slot_terms       reads S D a, and again from cache
                finish           reads and writes a quarter of that
    gradient    1       reads N D e and S D a, writes N D e

Nothing depends on C where C > N.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from discfused._definitions import PROBABILITY_FLOOR
from discfused.backends.bad_labels import bad_labels
from discfused.backends.contract import by_class
from discfused.backends.gpu import GpuBackend, is_soft
from discfused.backends.triton_runtime import interpreted, kernels, missing, on


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _blocks(name: str, dtype: torch.dtype) -> Any:
    return kernels().BLOCKS[dtype][name]


def _fitting(name: str, dtype: torch.dtype, key: str, length: int) -> dict[str, int]:
    """The first block that holds so many, else the last."""
    choices = _blocks(name, dtype)
    return next((blocks for blocks in choices if blocks[key] >= length), choices[-1])


def _pieces(N: int, S: int, D: int, blocks: dict[str, int]) -> tuple[int, int]:
    """The largest number of rows of a piece (triton_table._piece), and how many pieces may follow
    the first ones of their slots."""
    least = 4 * blocks["ROWS"]
    if N <= kernels().UNCUT and S * least >= N:
        return N, 0
    R = max(least, _cdiv(N * _cdiv(D, blocks["COLS"]), kernels().PIECES))
    return R, _cdiv(N, R) if N > R else 0


def _split(number: float) -> tuple[float, float]:
    """Triton passes Python's numbers as float32: the number so rounded, and the rest."""
    head = ctypes.c_float(number).value
    return head, number - head if math.isfinite(head) else 0.0


def _weighted(rows: Sequence[Tensor], S: int) -> bool:
    """Whether there are sample weights, of hard labels."""
    return rows[1].shape[0] > S + 1


def _by_rows(features: Tensor) -> Tensor:
    """With each row in one piece: else the compiler has another order of sums for them."""
    return features if features.stride(1) == 1 else features.contiguous()


class TritonBackend(GpuBackend):
    name = "triton"

    @property
    def device_type(self) -> str:
        return "cpu" if interpreted() else "cuda"

    def unavailable(self) -> str | None:
        return missing(interpreted())

    # triton_rows says what is in `index` and `weight`, triton_terms what in `coef`.

    @staticmethod
    def rows_numbers(N: int, S: int, weighted: bool) -> tuple[int, int]:
        return 2 * N + 3 * S + 2, S + 1 + (N if weighted else 0)

    def hard_rows(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        num_classes: int,
        ignore_index: int,
        dtype: torch.dtype,
        bad: Tensor,
    ) -> list[Tensor]:
        N, C = target.shape[0], num_classes
        weighted = sample_weight is not None
        index, weight = self.empty_rows(target, C, dtype, weighted)
        if N == 0:
            return [index.zero_(), weight.zero_()]
        k, present = kernels(), C > N
        items = N + (1 if present else C + 1)  # rows, then classes
        # Tensors that are not there are never read; any pointer will do.
        given = weight if sample_weight is None else sample_weight
        arguments = (given, given.stride(0), index, weight, bad)
        labels = (target, target.stride(0), *arguments)
        blocks = _fitting("rows", dtype, "ROWS", N)
        with on(target):
            if blocks["ROWS"] >= N:
                k.compare_rows_kernel[(_cdiv(items, blocks["OWN"]),)](
                    *labels, index, weight, N, C, ignore_index,
                    LAST=True, PRESENT=present, WEIGHTED=weighted, **blocks,
                )  # fmt: skip
                return [index, weight]
            blocks = _blocks("runs", dtype)
            length, runs, read = blocks["ROWS"], _cdiv(N, blocks["ROWS"]), 0
            scratch = (
                index.new_empty(4 * N + runs, dtype=torch.int32), weight.new_empty(2 * N + runs)
            )  # fmt: skip
            k.compare_rows_kernel[(_cdiv(N, blocks["OWN"]),)](
                *labels, *scratch, N, C, ignore_index,
                LAST=False, PRESENT=False, WEIGHTED=weighted, **blocks,
            )  # fmt: skip
            blocks, last = _blocks("merge", dtype), False
            while not last:
                group = length * k.RUNS
                last = group >= N
                k.merge_rows_kernel[(_cdiv(items if last else N, blocks["OWN"]),)](
                    *arguments, *scratch, N, C, length, group, read, runs,
                    LAST=last, PRESENT=last and present, WEIGHTED=weighted, **blocks,
                )  # fmt: skip
                length, read = group, 1 - read
        return [index, weight]

    def _table(
        self, features: Tensor, rows: Sequence[Tensor], table: Tensor, activation: int
    ) -> None:
        (N, D), S, k = features.shape, table.shape[0], kernels()
        features = _by_rows(features)
        arguments = (features, features.stride(0), *rows, table)
        if is_soft(rows):
            blocks = _blocks("soft_table", table.dtype)
            grid = (_cdiv(S, blocks["ROWS"]) * _cdiv(D, blocks["COLS"]),)
            k.soft_table_kernel[grid](*arguments, N, S, D, ACT=activation, **blocks)
            return
        blocks = _fitting("table", table.dtype, "ROWS", _cdiv(N, S))
        R, more = _pieces(N, S, D, blocks)
        parts = table.new_empty((more, D)) if more else table
        grid = ((S + 1 + more) * _cdiv(D, blocks["COLS"]),)
        k.table_kernel[grid](
            *arguments, parts, N, S, D, R, WEIGHTED=_weighted(rows, S), ACT=activation, **blocks
        )
        if more:
            blocks = _blocks("fold", table.dtype)
            grid = (more * _cdiv(D, blocks["COLS"]),)
            k.fold_kernel[grid](table, parts, *rows, N, S, D, R, **blocks)

    def terms(
        self,
        features: Tensor,
        rows: Sequence[Tensor],
        num_classes: int,
        prior: Tensor | None,
        activation: int,
        impurity: int,
        gini_weight: float,
        kl_weight: float,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        table, coef = self.empty_kept(features, rows, num_classes)
        (N, D), S, dtype = features.shape, table.shape[0], table.dtype
        if N == 0:
            penalty, gini, kl = (table.new_zeros(()) for _ in range(3))
            return penalty, gini, kl, [table, coef]
        penalty, gini, kl = (table.new_empty(()) for _ in range(3))
        index, weight = rows
        flags = {"PRIOR": prior is not None, "PRESENT": num_classes > S}
        absent = weight  # tensors that are not there are never read
        if prior is None:
            prior = weight
        elif num_classes > S:
            absent = _of_absent_classes(prior, index[2 * N + 2 * (S + 1) :])
        k = kernels()
        columns = _fitting("columns", dtype, "SLOTS", S)
        whole = columns is not _blocks("columns", dtype)[-1]
        blocks = _cdiv(D, columns["COLS"])
        column_sums = table.new_empty(blocks * (2 + S if whole else 2))
        scalars = (penalty, gini, kl)
        weights = (*_split(gini_weight), *_split(kl_weight))
        with on(features):
            self._table(features, rows, table, activation)
            k.column_terms_kernel[(blocks,)](
                table, weight, coef, column_sums, S, D,
                WHOLE=whole, IMPURITY=impurity, **columns,
            )  # fmt: skip
            if whole:
                k.whole_terms_kernel[(blocks,)](
                    table, index, weight, prior, absent, coef, column_sums, *scalars, N, S, D,
                    blocks, *weights, **flags, **columns,
                )  # fmt: skip
            else:
                slots, finish = _blocks("slots", dtype), _blocks("finish", dtype)
                slot_blocks = _cdiv(S, slots["SLOTS"])
                slot_sums = table.new_empty(slot_blocks * (D + 1))
                k.slot_terms_kernel[(slot_blocks,)](
                    table, index, weight, prior, coef, slot_sums, N, S, D, **flags, **slots
                )
                k.finish_kernel[(_cdiv(D, finish["COLS"]),)](
                    absent, weight, coef, column_sums, slot_sums, *scalars, S, D, blocks,
                    slot_blocks, *weights, ABSENT=absent is not weight, **finish,
                )  # fmt: skip
        return penalty, gini, kl, [table, coef]

    def gradient(
        self,
        features: Tensor,
        rows: Sequence[Tensor],
        kept: Sequence[Tensor],
        grad_penalty: Tensor | None,
        grad_gini: Tensor | None,
        grad_kl: Tensor | None,
        activation: int,
        gini_weight: float,
        kl_weight: float,
    ) -> Tensor:
        table, coef = kept
        upstream = (grad_penalty, grad_gini, grad_kl)
        given = sum(1 << i for i, grad in enumerate(upstream) if grad is not None)
        pointers = (coef if grad is None else grad for grad in upstream)
        numbers = (*pointers, given, *_split(gini_weight), *_split(kl_weight))
        return self._gradient(features, rows, table, coef, numbers, activation, TERMS=True)

    def histogram(
        self, features: Tensor, rows: Sequence[Tensor], num_classes: int, activation: int
    ) -> Tensor:
        table, _ = self.empty_kept(features, rows, num_classes)
        (N, D), S, C = features.shape, table.shape[0], num_classes
        if N == 0:
            return table.new_zeros((C, D))
        with on(features):
            self._table(features, rows, table, activation)
        if S == C:
            return table
        return by_class(table, rows[0][2 * N + 2 * (S + 1) :], C)

    def histogram_gradient(
        self, grad: Tensor, features: Tensor, rows: Sequence[Tensor], activation: int
    ) -> Tensor:
        numbers, grad = (*[rows[1]] * 3, 0, 0.0, 0.0, 0.0, 0.0), grad.contiguous()
        return self._gradient(features, rows, grad, rows[1], numbers, activation, TERMS=False)

    def _gradient(
        self,
        features: Tensor,
        rows: Sequence[Tensor],
        table: Tensor,
        coef: Tensor,
        numbers: tuple[Any, ...],
        activation: int,
        TERMS: bool,
    ) -> Tensor:
        (N, D), C, k = features.shape, table.shape[0], kernels()
        bad_labels(features.device).check()
        dx = torch.empty_like(features, memory_format=torch.contiguous_format)
        if N == 0:
            return dx
        flags = {"TERMS": TERMS, "ACT": activation}
        features = _by_rows(features)
        arguments = (features, features.stride(0), *rows, table, coef, *numbers, dx, N)
        with on(features):
            if is_soft(rows):
                blocks = _blocks("soft_gradient", rows[1].dtype)
                grid = (_cdiv(N, blocks["ROWS"]) * _cdiv(D, blocks["COLS"]),)
                k.soft_gradient_kernel[grid](*arguments, C, D, **flags, **blocks)
            else:
                S = min(N, C)
                blocks = _fitting("gradient", rows[1].dtype, "ROWS", _cdiv(N, S))
                R, more = _pieces(N, S, D, blocks)
                grid = ((S + 1 + more) * _cdiv(D, blocks["COLS"]),)
                k.gradient_kernel[grid](
                    *arguments, S, D, R, PRESENT=S < C, WEIGHTED=_weighted(rows, S), **flags,
                    **blocks,
                )  # fmt: skip
        return dx


def _of_absent_classes(prior: Tensor, slot_class: Tensor) -> Tensor:
    """What classes without a slot add to kl, where the prior is not that of the batch: q = 0."""
    absent = pad(prior, (0, 1))  # and one for all empty slots
    absent.index_fill_(0, torch.where(slot_class < 0, prior.shape[0], slot_class), 0)
    return torch.xlogy(absent, absent / PROBABILITY_FLOOR).sum()
