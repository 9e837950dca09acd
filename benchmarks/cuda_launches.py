"""What the CUDA backend launches for hard labels without weights: a second account of the host code
in csrc/cuda, which a test compares with what that code launches."""

import re
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parents[1] / "csrc/cuda"
_HEADER = (SOURCES / "kernels.h").read_text()


def _constant(name: str) -> int:
    return int(re.search(rf"constexpr int(?:64_t)? {name} = (\d+);", _HEADER)[1])


WARP, THREADS = _constant("kWarp"), _constant("kThreads")
WARPS, TILE = THREADS // WARP, WARP * _constant("kColumns")
RUN, RUNS_AT_ONCE = _constant("kRun"), _constant("kRunsAtOnce")
UNCUT, LEAST_PIECE = _constant("kUncut"), _constant("kLeastPiece")
RANGE, WARPS_AT_ONCE = _constant("kRange"), _constant("kWarpsAtOnce")


class CudaLaunch(NamedTuple):
    kernel: str
    grid: int
    bytes: int  # of all tensors that the kernel is given, each once; for classes of equal size
    threads: int = THREADS


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def launches(
    N: int, D: int, C: int, itemsize: int, a: int = 4
) -> tuple[list[CudaLaunch], list[CudaLaunch]]:
    """Forward and backward; a: bytes of a sum."""
    S = min(N, C)
    index, weights = 8 * (2 * N + 2 * S + 2), a * (S + 1 + N)
    x, table, columns = itemsize * N * D, a * S * D, a * D
    column_blocks, tiles = _cdiv(D, WARP), _cdiv(D, TILE)

    # rows: Runs have labels and rows; of each first run there are two sums.
    items, labels, runs = N + (1 if C > N else C + 1), 8 * N, (a + 8) * _cdiv(N, RUN)
    if N <= RUN:
        found = [CudaLaunch("compare_kernel", _cdiv(items, WARP), labels + index + weights)]
    else:
        found = [CudaLaunch("compare_kernel", _cdiv(N, WARP), 3 * labels + runs)]
        length, last = RUN, False
        while not last:
            length *= RUNS_AT_ONCE
            last = length >= N
            written = runs + index + weights if last else 2 * labels
            blocks = _cdiv(items if last else N, WARP)
            found.append(CudaLaunch("merge_kernel", blocks, 2 * labels + written))

    R = max(_cdiv(N * tiles, WARPS_AT_ONCE), LEAST_PIECE)
    if N <= UNCUT and N <= S * LEAST_PIECE:
        R = N
    more = _cdiv(N, R) if N > R else 0
    pieces = _cdiv((S + 1 + more) * tiles, WARPS)
    is_cut = N > S * R
    parts = a * more * D if is_cut else 0
    found.append(CudaLaunch("table_kernel", pieces, x + index + weights + table + parts))
    if more:
        moved = parts + table if is_cut else 0
        found.append(CudaLaunch("fold_kernel", more * tiles, index + weights + moved))

    ranges, slot_blocks = _cdiv(S, RANGE), _cdiv(S, WARPS)
    totals, projections = 2 * ranges * columns, slot_blocks * columns
    sums = a * 2 * column_blocks
    found += [
        CudaLaunch("totals_kernel", ranges * tiles, table + totals),
        CudaLaunch("features_kernel", column_blocks, totals + 3 * columns + sums),
        CudaLaunch(
            "slots_kernel", slot_blocks,
            table + columns + weights + projections + a * (S + column_blocks + slot_blocks),
        ),
        CudaLaunch(
            "finish_kernel", column_blocks, projections + columns + sums + a * (slot_blocks + 4)
        ),
    ]  # fmt: skip
    kept = table + 4 * columns + a * S
    return found, [CudaLaunch("gradient_kernel", pieces, 2 * x + index + weights + kept)]
