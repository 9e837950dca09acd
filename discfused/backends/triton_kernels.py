"""All Triton kernels, and the one table of their block sizes. Importing this imports Triton."""

from typing import Any

import torch

from discfused.backends.triton_gradient import gradient_kernel, soft_gradient_kernel
from discfused.backends.triton_rows import compare_rows_kernel, merge_rows_kernel
from discfused.backends.triton_table import fold_kernel, soft_table_kernel, table_kernel
from discfused.backends.triton_terms import (
    column_terms_kernel,
    finish_kernel,
    slot_terms_kernel,
    whole_terms_kernel,
)

__all__ = [
    "BLOCKS",
    "PIECES",
    "RUNS",
    "UNCUT",
    "column_terms_kernel",
    "compare_rows_kernel",
    "finish_kernel",
    "fold_kernel",
    "gradient_kernel",
    "merge_rows_kernel",
    "slot_terms_kernel",
    "soft_gradient_kernel",
    "soft_table_kernel",
    "table_kernel",
    "whole_terms_kernel",
]

# Lanes add up by exchanging their parts, and all store the sum, to one place. Where a part is a
# product, each lane would fuse its own with the addition of the other's: sums that differ by their
# rounding, and it is not defined which of them stays.
_UNFUSED = {"enable_fp_fusion": False}
# Block sizes and warps for sums in float32, chosen by reasoning from the compiled code, and not yet
# measured on a GPU. Memory of 3 TB/s and 0.7 microseconds latency needs 18 KB in flight on each
# multiprocessor; a thread reads 16 bytes at a time. They depend on shapes and dtypes alone: ranks
# of a process group, and runs on different GPUs, sum in the same order. Where there are several,
# the first that holds all rows ("rows"), all slots ("columns") or a class of mean size, else the
# last.
#
# Of x, one warp, in which each thread has columns of its own (so a sum over rows needs no exchange)
# and all ROWS in flight: 4 KB of bfloat16. Rows that a class does not have cost instructions.
_ROWS = tuple({"ROWS": rows, "COLS": 256, "num_warps": 1} for rows in (4, 8))
_BLOCKS = {
    # All that an item is compared with, at once.
    "rows": (
        {"ROWS": 256, "OWN": 4, "num_warps": 4},
        {"ROWS": 1024, "OWN": 4, "num_warps": 8},
    ),
    "runs": {"ROWS": 1024, "OWN": 16, "num_warps": 8},
    # Each warp has all OWN rows, and looks in one run: neighbours are found at places side by side.
    "merge": {"RUNS": 8, "OWN": 32, "num_warps": 8},
    "table": _ROWS,
    "gradient": _ROWS,
    # 16 to 32 elements of H a thread. The last is for all slots beyond those of the others.
    "columns": (
        {"SLOTS": 64, "COLS": 32, "LINES": 32, "num_warps": 4, **_UNFUSED},
        {"SLOTS": 256, "COLS": 32, "LINES": 32, "num_warps": 8, **_UNFUSED},
        {"SLOTS": 1024, "COLS": 16, "LINES": 32, "num_warps": 16, **_UNFUSED},
    ),
    # One warp: most programs find that no slot was cut at their multiple, and as many as can be
    # should find that at a time.
    "fold": {"LINES": 16, "COLS": 64, "num_warps": 1},
    # A few rows of H whole, wide enough that D = 2048 takes two turns.
    "slots": {"SLOTS": 4, "COLS": 1024, "num_warps": 8},
    "finish": {"LINES": 256, "COLS": 16, "num_warps": 8},
    "soft_table": {"ROWS": 64, "INNER": 32, "COLS": 64, "num_warps": 4},
    "soft_gradient": {"ROWS": 64, "INNER": 32, "COLS": 64, "num_warps": 4},
}
# A product of float64 is a sum over a block of three dimensions in registers.
_SOFT_DOUBLE = {"ROWS": 32, "INNER": 4, "COLS": 16, "num_warps": 4, **_UNFUSED}


def _double(blocks: Any) -> Any:
    """Half as many columns, of twice the size."""
    if isinstance(blocks, tuple):
        return tuple(map(_double, blocks))
    return {**blocks, "COLS": blocks["COLS"] // 2} if "COLS" in blocks else blocks


BLOCKS = {  # by accumulation dtype
    torch.float32: _BLOCKS,
    torch.float64: {
        **{name: _double(blocks) for name, blocks in _BLOCKS.items()},
        "soft_table": _SOFT_DOUBLE,
        "soft_gradient": _SOFT_DOUBLE,
    },
}
# Into how many programs of one warp to split long runs of rows: 16 on each multiprocessor of a
# large GPU.
PIECES = 2048
# So many runs of rows are merged at once: the work for each row grows with them.
RUNS = 32
# So few rows, a least piece or fewer a slot, are not cut: that would take one launch more.
UNCUT = 256
