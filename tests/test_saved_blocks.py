"""What the CPU backend's forward saves for relu, so that backward need not look at the features."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from cases import DTYPES, features, labels
from discfused import backends, disc_terms
from discfused._autograd import terms_forward
from discfused.backends.contract import Labels, Pull, Settings

# All blocks of columns have room; most of them; some of them, the last of one column; none; and
# none, because nearly every row is of another class.
SHAPES = [(64, 256, 20), (160, 640, 40), (130, 257, 7), (300, 33, 2), (64, 256, 640)]


@pytest.fixture(scope="module")
def cpu():
    backend = backends.get("cpu")
    if reason := backend.unavailable():
        pytest.skip(reason)
    return backend


def saved_and_not(cpu, x, y, C, center):
    """Gradients: as usual; of features that cannot be read where they were saved; made anew."""
    given = Labels(y, None, None, C, -100)
    settings = Settings("relu", center, False, 1e-6)
    terms, histogram, members = terms_forward(
        cpu, x, given, None, settings, 0.5, 2.0, for_backward=True, save=True
    )
    one = torch.ones((), dtype=terms.gini.dtype)
    pull = Pull(terms.feature_coef, terms.slot_coef, one, one, 0.5, 2.0)
    unreadable = torch.full_like(x, torch.nan)
    return [
        cpu.gradient(source, members, histogram.mean, table, "relu", pull)
        for source, table in ((x, histogram.table), (unreadable, histogram.table), (x, None))
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("center", [True, False], ids=["center", "raw"])
@pytest.mark.parametrize(("N", "D", "C"), SHAPES)
def test_backward_does_not_look_at_features_that_were_saved(cpu, N, D, C, center, dtype):
    x, y = features(N, D, dtype), labels(N, C)
    x[:, 1] = x[:, 0].flip(0)  # no dead column: its gradient is 0 whatever it is made of
    y[::7] = -100  # rows that do not count
    both, saved, anew = saved_and_not(cpu, x, y, C, center)
    rtol, atol = (1e-2, 1e-6) if dtype.itemsize == 2 else (1e-4, 1e-8)
    torch.testing.assert_close(both, anew, rtol=rtol, atol=atol)
    counts = y != -100
    known = saved[counts].isfinite().all(0)
    assert torch.equal(saved[:, known], both[:, known])
    least = {(64, 256): 256, (160, 640): 512, (130, 257): 64, (300, 33): 0}[N, D] * (C < N)
    assert known.sum() >= least and (least > 0 or not known.any())


def test_a_second_backward_and_moved_tensors_give_the_same_bits(cpu):
    x, y = features(64, 256, torch.float32).requires_grad_(), labels(64, 20)

    def terms():
        gini, kl = disc_terms(x, y, 20, backend="cpu")
        return gini + kl

    def pack(tensor):
        return tensor.detach().clone()

    def misaligned(tensor):
        moved = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
        return moved.copy_(tensor)

    loss = terms()
    expected = [torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2)]
    with saved_tensors_hooks(pack, misaligned):
        loss = terms()
    expected.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(expected[0], expected[1]) and torch.equal(expected[0], expected[2])


@pytest.mark.parametrize(
    ("activation", "grad"), [("abs", True), ("relu", False)], ids=["abs", "no gradient"]
)
def test_nothing_is_saved_that_nobody_reads(cpu, activation, grad):
    x, given = features(64, 256), Labels(labels(64, 20), None, None, 20, -100)
    settings = Settings(activation, True, False, 1e-6)
    arguments = cpu, x, given, None, settings, 1.0, 1.0
    assert terms_forward(*arguments, for_backward=grad, save=grad)[1].table is None
