"""What the operators of the Triton backend promise beyond equal results: the order of rows, shapes,
bits and launches. Under Triton's interpreter: test_triton.py runs this.
"""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cases import LABELS, equal, features, labels, soft_labels, step
from discfused import _ops, backends, disc_terms
from discfused._definitions import accumulation_dtype
from discfused.backends.bad_labels import bad_labels
from interpreted import KERNELS, TILES, memory, tiles  # noqa: F401 (fixtures)


def by_hand(y, w, C):
    """What triton_rows says of `index` and `weight`."""
    N, weighted = len(y), w is not None
    w = w or [1] * N
    w = [w[i] if 0 <= y[i] < C else 0 for i in range(N)]
    of_row = [y[i] if w[i] else C for i in range(N)]
    order = sorted(range(N), key=of_row.__getitem__)
    sorted_classes = [of_row[i] for i in order]
    slots = list(range(C))  # their classes, None for an empty slot
    if C > N:
        first = [c not in sorted_classes[:i] for i, c in enumerate(sorted_classes)]
        slots = [c if c < C and new else None for c, new in zip(sorted_classes, first, strict=True)]
    slots.append(C)
    smaller = {c: sum(k < c for k in sorted_classes) for c in slots if c is not None}
    start = [smaller.get(c, i) for i, c in enumerate(slots)]
    count = [sorted_classes.count(c) for c in slots]
    slot_class = [c if k else -1 for c, k in zip(slots, count, strict=True)][:-1]
    size = [sum(w[i] for i in range(N) if of_row[i] == c) for c in slot_class]
    row_slot = [slots.index(c) for c in sorted_classes]
    index = [*order, *row_slot, *start, *count, *slot_class]
    return index, [*size, sum(w), *((w[i] for i in order) if weighted else ())]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("C", "kind"), [*((C, kind) for C in (1, 6, 35, 36) for kind in LABELS), (21841, LABELS[0])]
)
def test_rows_of_one_run_and_of_several(C, kind, weighted, monkeypatch):
    """Labels out of range are among them: their rows do not count, and nothing follows them."""
    y = labels(35, C, kind)
    y[5], y[8], y[20] = C, -1, 2**40
    w = torch.arange(35) % 4 / 2 if weighted else None  # halves: sums have no rounding
    expected = by_hand(y.tolist(), w if w is None else w.tolist(), C)
    monkeypatch.setattr(type(bad_labels(y.device)), "check", lambda self: None)
    flag = bad_labels(y.device).flag
    for rows in (64, 16):
        monkeypatch.setitem(TILES, "rows", ({"ROWS": rows, "OWN": 8},))
        rows = _ops.named("triton").rows(y, w, C, -100, torch.float64)
        assert tuple(t.tolist() for t in rows) == expected
        assert flag.item() == 3
        flag.zero_()


@pytest.mark.parametrize("C", [5, 40])
@pytest.mark.parametrize("rows", [16, 32])  # less than there are, and more
def test_bad_labels_are_counted_and_reach_the_user(C, rows, monkeypatch):
    monkeypatch.setitem(TILES, "rows", ({"ROWS": rows, "OWN": 8},))
    y, x = labels(20, C), features(20, 3)
    bad = y.clone()
    bad[3], bad[7], bad[8], bad[11] = C, -1, 2**40, -100
    with pytest.raises(IndexError, match=r"3 labels (are|were) out of range"):
        disc_terms(x, bad, C, backend="triton")
    disc_terms(x, y, C, backend="triton")


def test_the_same_bits_on_every_run():
    x, y = features(20, 17, torch.float32), labels(20, 10)
    assert equal(step("triton", x, y, 10), step("triton", x, y, 10))


@pytest.mark.parametrize("C", [5, 40])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_shapes_of_what_is_kept(C, soft, weighted):
    """torch.compile plans with empty_rows and empty_kept."""
    N, D, acc = 20, 7, torch.float32
    target, x = (soft_labels if soft else labels)(N, C), torch.randn(N, D)
    triton, backend = _ops.named("triton"), backends.get("triton")
    rows = triton.rows(target, torch.ones(N) if weighted else None, C, -100, acc)
    kept = triton.terms(x, rows, C, None, 0, 0, 0.5, 0.5)[3]
    expected = backend.empty_rows(target, C, acc, weighted), backend.empty_kept(x, rows, C)
    for tensors, empty in zip((rows, kept), expected, strict=True):
        assert [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in empty]


# ---------------------------------------------------------------- launches

NO_LAUNCH = ("empty", "view", "detach", "alias", "select", "slice", "expand", "as_strided", "t.")


class Launches(TorchDispatchMode):
    """What would be launched on a GPU: kernels of Triton, and PyTorch's ops."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names, self.launches = [], []
        for name in KERNELS.__all__:
            if name.endswith("_kernel"):
                counted = Counted(getattr(KERNELS, name), name.removesuffix("_kernel"), self)
                monkeypatch.setattr(KERNELS, name, counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if not any(word in name for word in NO_LAUNCH) and not name.startswith("discfused"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Counted:
    def __init__(self, kernel, name, counts):
        self.kernel, self.name, self.counts = kernel, name, counts

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.counts.names.append(self.name)
            self.counts.launches.append(partial(self.kernel[grid], *args, **options))
            with _disable_current_modes():
                self.kernel[grid](*args, **options)

        return launch


TERMS = {  # by C: one tile of slots, or several
    6: ["column_terms", "whole_terms"],
    30: ["column_terms", "slot_terms", "finish"],
}


@pytest.mark.parametrize("C", TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_launches(C, dtype, monkeypatch):
    """Everything between labels and features and the terms, and back."""
    N, D, acc = 12, 19, accumulation_dtype(dtype)
    x, y, triton = features(N, D, dtype).requires_grad_(), labels(N, C), _ops.named("triton")
    bad_labels(x.device)  # made once a process
    with Launches(monkeypatch) as launched:
        rows = triton.rows(y, None, C, -100, acc)
        penalty, *_ = triton.terms(x, rows, C, None, 0, 0, 0.3, 0.7)
        assert launched.names == ["compare_rows", "table", "fold", *TERMS[C]]
    upstream = torch.ones_like(penalty)
    with launched:
        launched.names.clear()
        torch.autograd.grad(penalty, x, upstream)
        assert launched.names == ["gradient"]


def test_labels_of_compiled_code_are_not_held():
    """mode="reduce-overhead" gives them memory of a CUDA graph, and fails if somebody holds it."""
    x, y = features(20, 3).requires_grad_(), labels(20, 5)
    held = bad_labels(x.device)._batches
    held.clear()
    compiled = torch.compile(
        lambda x, y: disc_terms(x, y + 0, 5, backend="triton").gini, fullgraph=True,
        backend="aot_eager",
    )  # fmt: skip
    gini = compiled(x, y)
    (got,) = torch.autograd.grad(gini, x)
    assert not held
    expected = disc_terms(x, y, 5, backend="triton").gini
    assert [target is y for target, _, _ in held] == [True]
    torch.testing.assert_close(gini, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize("C", [5, 40])
def test_labels_are_checked_where_launches_are_replayed(C, monkeypatch):
    """As a CUDA graph does it: the same kernels and pointers, other labels, none of our Python."""
    y, x = labels(20, C), features(20, 3)
    disc_terms(x, y, C, backend="triton")  # within Launches tensors are not looked at
    with Launches(monkeypatch) as launched:
        gini, _ = disc_terms(x, y, C, backend="triton")
    expected = gini.clone()
    y[3], y[7] = C, -1
    for launch in launched.launches:
        launch()
    with pytest.raises(IndexError, match=rf"target\[3\] is {C}, .* \(2 labels are out of range\)"):
        backends.check_labels()
    backends.check_labels()  # reported once
    y[:9] = 0
    other = disc_terms(x, y, C, backend="triton").gini
    for launch in launched.launches:
        launch()
    assert torch.equal(gini, other) and not torch.equal(gini, expected)
    backends.check_labels()
