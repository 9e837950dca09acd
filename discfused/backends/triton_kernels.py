"""All Triton kernels, and the one table of their block sizes. Importing this imports Triton."""

import torch

from discfused.backends.triton_gradient import (
    gradient_kernel,
    gradient_sum_kernel,
    matmul_kernel,
)
from discfused.backends.triton_histogram import (
    carry_kernel,
    slot_rows_kernel,
    whole_columns_kernel,
)
from discfused.backends.triton_slots import members_kernel, report_kernel, share_kernel
from discfused.backends.triton_terms import class_terms_kernel, feature_terms_kernel

__all__ = [
    "BLOCKS",
    "PROGRAMS",
    "carry_kernel",
    "class_terms_kernel",
    "feature_terms_kernel",
    "gradient_kernel",
    "gradient_sum_kernel",
    "matmul_kernel",
    "members_kernel",
    "report_kernel",
    "share_kernel",
    "slot_rows_kernel",
    "whole_columns_kernel",
]

# Block sizes and warps for sums in float32, chosen on 2026-11-22 by reasoning from the compiled
# code, and not yet measured on a GPU. Programs that stream features have on their way what memory
# of 3 TB/s and 0.7 microseconds latency wants (18 KB on each multiprocessor), and a thread reads 16
# bytes at a time. They depend on shapes and dtypes alone: ranks of a process group, and runs on
# different GPUs, sum in the same order.
_BLOCKS = {
    "class_slots": {"ROWS": 512, "SLOTS": 4, "num_warps": 8},
    "present_slots": {"ROWS": 256, "SLOTS": 8, "num_warps": 8},
    "moments": {"MOMENT_ROWS": 32, "COLS": 128},  # in the launch of one of the two above
    "share": {"ROWS": 4096, "num_warps": 8},
    # One warp, in which each thread has columns of its own: rows of features, one after the other.
    "slot_rows": {"PARTS": 8, "ROWS": 4, "COLS": 256, "num_warps": 1},
    "carry": {"LINES": 32, "COLS": 32, "num_warps": 4},
    "feature_terms": {"LINES": 64, "SLOTS": 256, "COLS": 32, "num_warps": 8},
    "class_terms": {"PARTS": 32, "SLOTS": 128, "COLS": 32, "num_warps": 8},
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
    torch.float64: {
        **{name: _narrow(blocks) for name, blocks in _BLOCKS.items()},
        "class_terms": {"PARTS": 16, "SLOTS": 128, "COLS": 16, "num_warps": 8},
    },
}
# Into how many programs to split a launch over rows: on each multiprocessor of a large GPU 4 of 4
# or 8 warps, or 16 of one.
PROGRAMS = {"moments": 512, "slot_rows": 2048, "gradient_sum": 512}
