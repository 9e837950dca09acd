"""What the tests of the Triton kernels under Triton's interpreter share.

Its fixtures: small tiles, and a watch over which memory the kernels touch.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_triton.py, in a process where TRITON_INTERPRET=1",
                allow_module_level=True)  # fmt: skip

import numpy as np
import torch
from triton.runtime import interpreter

from discfused.backends import triton_runtime

# So small that every loop runs more than once, and slots are cut. The product of matrices wants 16.
COLUMNS = {"COLS": 8, "LINES": 2}
TILES = {
    "rows": ({"ROWS": 32, "OWN": 16},),
    "runs": {"ROWS": 8, "OWN": 8},
    "merge": {"RUNS": 2, "OWN": 16},
    "table": ({"ROWS": 2, "COLS": 16},),
    "gradient": ({"ROWS": 2, "COLS": 16},),
    "columns": tuple({"SLOTS": slots, **COLUMNS} for slots in (4, 8, 2)),
    "fold": COLUMNS,
    "slots": {"SLOTS": 4, "COLS": 16},
    "finish": {"LINES": 2, "COLS": 16},
    "soft_table": {"ROWS": 16, "INNER": 16, "COLS": 16},
    "soft_gradient": {"ROWS": 16, "INNER": 16, "COLS": 16},
}


KERNELS = triton_runtime.kernels()
REAL_TILES = KERNELS.BLOCKS


def _spans(tensors) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of the addresses of the tensors' elements; one span where some overlap."""
    spans = [[0, 0]]
    for t in sorted(tensors, key=lambda t: t.data_ptr()):
        if t.numel():
            last = sum(
                (size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)
            )
            begin, end = t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize
            if begin <= spans[-1][1]:
                spans[-1][1] = max(end, spans[-1][1])
            else:
                spans.append([begin, end])
    return tuple(np.array(spans, dtype=np.uint64).T)


class Watch:
    """While it is there, every launch fails that reaches beyond the tensors it was given, or has a
    program that reads or writes what another one writes: these run at the same time on a GPU."""

    def __init__(self, monkeypatch):
        builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
        self.builder = builder
        load, store = builder.create_masked_load, builder.create_masked_store
        prepare, finish = executor._init_args_hst, executor._restore_args_dev

        def watched_load(ptrs, mask, *arguments):
            self.reads.append(self.touched(ptrs, mask))
            return load(ptrs, mask, *arguments)

        def watched_store(ptrs, value, mask, *arguments):
            self.writes.append(self.touched(ptrs, mask))
            return store(ptrs, value, mask, *arguments)

        def watched_prepare(*arguments):
            given = prepare(*arguments)
            self.begin, self.end = _spans(t for t in given[0] if hasattr(t, "data_ptr"))
            self.reads, self.writes = [], []
            return given

        def watched_finish(*arguments):
            self.check_programs()
            return finish(*arguments)

        monkeypatch.setattr(builder, "create_masked_load", watched_load)
        monkeypatch.setattr(builder, "create_masked_store", watched_store)
        monkeypatch.setattr(executor, "_init_args_hst", watched_prepare)
        monkeypatch.setattr(executor, "_restore_args_dev", watched_finish)

    def touched(self, ptrs, mask) -> tuple[np.ndarray, int]:
        """The addresses, and the program."""
        addresses = ptrs.data[mask.data.astype(bool)]
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        span = np.searchsorted(self.begin, addresses, side="right") - 1
        assert (addresses + np.uint64(size) <= self.end[span]).all(), "out of bounds"
        return addresses, self.builder.grid_idx[0]

    def check_programs(self) -> None:
        written, writers = _flat(self.writes)
        order = np.argsort(written, kind="stable")
        written, writers = written[order], writers[order]
        same = written[1:] == written[:-1]
        assert (writers[1:] == writers[:-1])[same].all(), "two programs write one element"
        read, readers = _flat(self.reads)
        if len(written):
            at = np.searchsorted(written, read).clip(max=len(written) - 1)
            alien = (written[at] == read) & (writers[at] != readers)
            assert not alien.any(), "a program reads what another one writes"


def _flat(accesses) -> tuple[np.ndarray, np.ndarray]:
    addresses = [np.zeros(0, np.uint64), *(addresses.ravel() for addresses, _ in accesses)]
    programs = [np.full(len(a), p) for a, (_, p) in zip(addresses[1:], accesses, strict=True)]
    return np.concatenate(addresses), np.concatenate([np.zeros(0, int), *programs])


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    monkeypatch.setattr(KERNELS, "BLOCKS", dict.fromkeys(REAL_TILES, TILES))
    monkeypatch.setattr(KERNELS, "PIECES", 16)
    monkeypatch.setattr(KERNELS, "RUNS", 4)
    monkeypatch.setattr(KERNELS, "UNCUT", 6)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """A number that nobody wrote is NaN, a place out of bounds; and no access is out of bounds."""
    Watch(monkeypatch)
    torch.use_deterministic_algorithms(True)  # torch.empty fills what it makes
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def backend() -> str:
    return "triton"


fused_backend = backend
