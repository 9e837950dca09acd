"""All Triton kernels, and the one table of their block sizes. Importing this imports Triton."""

import torch

from discfused.backends.triton_gradient import (
    gradient_kernel,
    gradient_sum_kernel,
    matmul_kernel,
)
from discfused.backends.triton_histogram import (
    fold_kernel,
    moments_kernel,
    slot_rows_kernel,
    whole_columns_kernel,
)
from discfused.backends.triton_slots import (
    class_slots_kernel,
    present_slots_kernel,
    report_kernel,
    share_kernel,
)
from discfused.backends.triton_terms import class_terms_kernel, feature_terms_kernel

__all__ = [
    "BLOCKS",
    "PROGRAMS",
    "class_slots_kernel",
    "class_terms_kernel",
    "feature_terms_kernel",
    "fold_kernel",
    "gradient_kernel",
    "gradient_sum_kernel",
    "matmul_kernel",
    "moments_kernel",
    "present_slots_kernel",
    "report_kernel",
    "share_kernel",
    "slot_rows_kernel",
    "whole_columns_kernel",
]

# Block sizes and warps for sums in float32, chosen on 2026-11-22 by reasoning from the compiled
# code, and not yet measured on a GPU. Tiles hold 2 to 8 KB of bfloat16, so that four or more
# programs on a multiprocessor have in flight what memory of 3 TB/s and 0.7 microseconds latency
# wants (18 KB); a thread reads 16 bytes at a time. They depend on shapes and dtypes alone: ranks
# of a process group, and runs on different GPUs, sum in the same order.
_BLOCKS = {
    "class_slots": {"ROWS": 1024, "SLOTS": 4, "num_warps": 8},
    "present_slots": {"ROWS": 16, "OTHERS": 256, "num_warps": 4},
    "share": {"ROWS": 1024, "num_warps": 4},
    "moments": {"ROWS": 32, "COLS": 128, "num_warps": 4},
    "fold": {"PARTS": 8, "COLS": 128, "num_warps": 4},
    "slot_rows": {"ROWS": 8, "COLS": 256, "num_warps": 4},
    # Each thread holds all rows of its columns: no exchange between threads at the end of a slot.
    "slot_rows_wide": {"ROWS": 4, "COLS": 1024, "num_warps": 4},
    "feature_terms": {"SLOTS": 256, "COLS": 32, "num_warps": 8},
    "class_terms": {"PARTS": 64, "SLOTS": 128, "COLS": 64, "num_warps": 8},
    "gradient_sum": {"ROWS": 8, "COLS": 128, "num_warps": 4},
    "gradient": {"ROWS": 16, "COLS": 128, "PARTS": 16, "num_warps": 4},
    "matmul": {"ROWS": 64, "INNER": 32, "COLS": 64, "num_warps": 4},
    # A batch of at most ROWS rows fits one program's registers, COLS columns at a time. Few warps:
    # the scan costs less within a warp than between warps.
    "whole_columns": (
        {"ROWS": 64, "COLS": 32, "num_warps": 4},
        {"ROWS": 256, "COLS": 16, "num_warps": 4},
        {"ROWS": 1024, "COLS": 8, "num_warps": 4},
    ),
    "whole_gradient": (
        {"ROWS": 64, "COLS": 32, "num_warps": 4},
        {"ROWS": 256, "COLS": 16, "num_warps": 4},
        {"ROWS": 1024, "COLS": 8, "num_warps": 8},
    ),
}


def _narrow(blocks):
    """Half as many columns, of twice the size; a quarter of the elements in each thread where a
    tile fills the registers."""
    if isinstance(blocks, tuple):
        return tuple({**_narrow(b), "num_warps": 8} for b in blocks)
    return {**blocks, "COLS": blocks["COLS"] // 2} if "COLS" in blocks else blocks


BLOCKS = {  # by accumulation dtype
    torch.float32: _BLOCKS,
    torch.float64: {name: _narrow(blocks) for name, blocks in _BLOCKS.items()},
}
# How many programs a launch is split into where that takes a second stage: 4 on each
# multiprocessor of a large GPU.
PROGRAMS = 512
