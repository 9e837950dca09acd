"""All Triton kernels, and the one table of their block sizes. Importing this imports Triton."""

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
    share_kernel,
)
from discfused.backends.triton_terms import class_terms_kernel, feature_terms_kernel

__all__ = [
    "BLOCKS",
    "PROGRAMS",
    "WHOLE_COLUMNS",
    "class_slots_kernel",
    "class_terms_kernel",
    "feature_terms_kernel",
    "fold_kernel",
    "gradient_kernel",
    "gradient_sum_kernel",
    "matmul_kernel",
    "moments_kernel",
    "present_slots_kernel",
    "share_kernel",
    "slot_rows_kernel",
    "whole_columns_kernel",
]

# Block sizes and warps, chosen by reasoning on 2026-11-22 and not yet measured on a GPU. Wide tiles
# hold 8 KB of bfloat16, so that four or more programs on a multiprocessor have the 20 to 30 KB in
# flight that memory of 3 TB/s and 0.7 microseconds latency wants; rows of at least 64 bytes keep
# device memory efficient. Whole-column tiles hold at most 64 elements for each thread.
# They depend on nothing but shapes: ranks of a process group and runs on any GPU sum alike.
BLOCKS = {
    "class_slots": {"ROWS": 1024, "SLOTS": 8, "num_warps": 8},
    "present_slots": {"ROWS": 32, "OTHERS": 256, "num_warps": 8},
    "share": {"ROWS": 1024, "num_warps": 4},
    "moments": {"ROWS": 32, "COLS": 128, "num_warps": 4},
    "fold": {"PARTS": 16, "COLS": 128, "num_warps": 4},
    "slot_rows": {"ROWS": 16, "COLS": 256, "num_warps": 4},
    "feature_terms": {"SLOTS": 256, "COLS": 32, "num_warps": 8},
    "class_terms": {"PARTS": 64, "SLOTS": 128, "COLS": 64, "num_warps": 8},
    "gradient_sum": {"ROWS": 32, "COLS": 128, "num_warps": 4},
    "gradient": {"ROWS": 32, "COLS": 128, "PARTS": 16, "num_warps": 4},
    "matmul": {"ROWS": 64, "INNER": 32, "COLS": 64, "num_warps": 4},
}
# A batch of at most ROWS rows fits one program's registers, COLS columns at a time.
WHOLE_COLUMNS = (
    {"ROWS": 64, "COLS": 64, "num_warps": 4},
    {"ROWS": 256, "COLS": 32, "num_warps": 8},
    {"ROWS": 1024, "COLS": 16, "num_warps": 16},
)
PROGRAMS = 512  # how many a launch is split into, where that takes a second stage: 4 for each
# multiprocessor of a large GPU
