"""Class sums: micro-batches have the gradient of the whole batch; running sums."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cases import soft_labels
from discfused import (
    ClassSums,
    FusedDiscLoss,
    RunningDiscLoss,
    class_histogram,
    class_sums,
    disc_terms,
    fused_disc_loss,
)
from models import Net

N, D, C = 13, 7, 5
PARTS = [slice(0, 5), slice(5, 5), slice(5, 6), slice(6, N)]  # one is empty
CLOSE = {"rtol": 0, "atol": 1e-12}


def batch(soft: bool):
    x = torch.randn(N, D, dtype=torch.float64)
    hard = torch.randint(0, C, (N,))
    hard[3] = -100
    y = soft_labels(N, C) if soft else hard
    return x, torch.randn(N, C, dtype=torch.float64), y, torch.rand(N, dtype=torch.float64)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_sums_and_sizes(backend, soft):
    """They are numerator and denominator of the histogram, and add up over parts."""
    x, _, y, s = batch(soft)
    options = {"sample_weight": s, "backend": backend}
    whole = class_sums([x, x.float()], y, C, **options)
    H = class_histogram(x, y, C, **options)
    torch.testing.assert_close(whole.histograms()[0], H, **CLOSE)
    m = y * s[:, None] if soft else torch.eye(C, dtype=x.dtype)[y.clamp(min=0)] * s[:, None]
    m = m if soft else m * (y >= 0)[:, None]
    torch.testing.assert_close(whole.sizes, m.sum(0), **CLOSE)
    torch.testing.assert_close(whole.tables[0], m.T @ x.abs(), **CLOSE)
    parts = [
        class_sums([x[p], x[p].float()], y[p], C, sample_weight=s[p], backend=backend)
        for p in PARTS
    ]
    total = sum(parts)
    assert total.counts.tolist()[2] == len(PARTS)
    for got, expected in zip(total._tensors()[:-1], whole._tensors()[:-1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    again = pickle.loads(pickle.dumps(total))
    assert all(map(torch.equal, again._tensors(), copy.deepcopy(total)._tensors()))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("impurity", ["gini", "collision"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_mean_over_parts_is_the_loss_of_the_whole(backend, soft, impurity, reduction):
    x, z, y, s = batch(soft)
    options = {
        "impurity": impurity, "reduction": reduction, "weight": torch.arange(1, C + 1),
        "label_smoothing": 0.1, "backend": backend,
    }  # fmt: skip
    x.requires_grad_(), z.requires_grad_()
    expected = fused_disc_loss(z, y, x, sample_weight=s, **options)
    wanted = torch.autograd.grad(expected, (x, z))
    whole = sum(
        class_sums(x[p], y[p], C, weight=options["weight"], sample_weight=s[p], backend=backend)
        for p in PARTS
    )
    loss = sum(
        fused_disc_loss(z[p], y[p], x[p], sample_weight=s[p], class_sums=whole, **options)
        for p in PARTS
    ) / len(PARTS)
    torch.testing.assert_close(loss, expected, **CLOSE)
    for got, want in zip(torch.autograd.grad(loss, (x, z)), wanted, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_terms_alone(backend):
    x, _, y, _ = batch(soft=False)
    x.requires_grad_()
    whole = sum(class_sums(x[p], y[p], C, backend=backend) for p in PARTS)
    for term in range(2):
        expected = disc_terms(x, y, C, backend=backend)[term]
        parts = [disc_terms(x[p], y[p], C, class_sums=whole, backend=backend)[term] for p in PARTS]
        for part in parts:
            torch.testing.assert_close(part, expected, **CLOSE)
        (got,) = torch.autograd.grad(sum(parts) / len(PARTS), x)
        torch.testing.assert_close(got, torch.autograd.grad(expected, x)[0], **CLOSE)


def test_an_attached_model_with_dropout():
    """With fork_rng both passes have the same dropout. The loop is that of the docstring."""
    model = Net().double()
    model.module.p = 0.5
    criterion = FusedDiscLoss.attach(model)
    parts = [
        (torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.randint(0, 4, (n,))) for n in (3, 6)
    ]
    with torch.no_grad(), torch.random.fork_rng():
        whole = sum(criterion.class_sums(model(x), y) for x, y in parts)
    state = torch.get_rng_state()
    for x, y in parts:
        loss = criterion(model(x), y, class_sums=whole)
        (loss / len(parts)).backward()
    got = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    torch.set_rng_state(state)
    logits = [model(x) for x, _ in parts]
    features = torch.cat([criterion.tap.take(z) for z in logits])
    FusedDiscLoss()(torch.cat(logits), torch.cat([y for _, y in parts]), features).backward()
    for g, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, **CLOSE)


def test_what_does_not_fit():
    x, z, y, _ = batch(soft=False)
    whole = class_sums(x, y, C)
    with pytest.raises(TypeError, match="class_sums is a dict, expected ClassSums"):
        fused_disc_loss(z, y, x, class_sums=whole.state_dict())
    with pytest.raises(ValueError, match=r"class_sums have shapes .*\(5, 7\).*\(5, 6\)"):
        fused_disc_loss(z, y, x[:, :-1], class_sums=whole)
    with pytest.raises(ValueError, match="the same layers and classes"):
        whole + class_sums([x, x], y, C)
    with pytest.raises(TypeError):
        whole + 1
    with pytest.raises(ValueError, match="features is None"):
        FusedDiscLoss().class_sums(z, y)
    with pytest.raises(ValueError, match=r"momentum is 1.0, expected a number in \[0, 1\)"):
        RunningDiscLoss(momentum=1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_running_sums(backend, momentum):
    """S = batch + momentum * S, with the gradient of 1 + momentum + ... parts."""
    criterion = RunningDiscLoss(momentum=momentum, backend=backend)
    parts, table, sizes = 0.0, 0, 0
    for _ in range(3):
        x, z, y, s = batch(soft=False)
        x.requires_grad_()
        own = class_sums(x, y, C, sample_weight=s, backend=backend)
        earlier = momentum * table, momentum * sizes
        parts = 1 + momentum * parts
        table, sizes = own.tables[0] + earlier[0], own.sizes + earlier[1]
        loss = criterion(z, y, x, sample_weight=s)
        n = torch.where(sizes == 0, 1, sizes)
        m = torch.eye(C, dtype=x.dtype)[y.clamp(min=0)] * (s * (y >= 0))[:, None]
        H = (m.T @ x.abs() + earlier[0]) / n[:, None]
        terms = disc_terms(H, torch.arange(C), C, sample_weight=sizes, backend="reference")
        ce = fused_disc_loss(z, y, sample_weight=s, gini_weight=0, kl_weight=0)
        torch.testing.assert_close(loss, ce + 0.5 * sum(terms), **CLOSE)
        (got,) = torch.autograd.grad(loss, x)
        (expected,) = torch.autograd.grad(0.5 * sum(terms), x)
        torch.testing.assert_close(got, parts * expected, **CLOSE)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_beside_running_sums_is_that_of_the_batch(reduction, weighted):
    x, z, y, s = batch(soft=False)
    options = {
        "reduction": reduction, "gini_weight": 0, "kl_weight": 0,
        "weight": torch.arange(1.0, C + 1) if weighted else None,
    }  # fmt: skip
    expected = fused_disc_loss(z, y, sample_weight=s if weighted else None, **options)
    criterion = RunningDiscLoss(**options)
    for _ in range(10):
        loss = criterion(z, y, x, sample_weight=s if weighted else None)
        torch.testing.assert_close(loss, expected, **CLOSE)
        torch.testing.assert_close(criterion.terms.ce, expected, **CLOSE)


def test_the_sum_beside_running_sums_has_the_terms_once_for_each_row():
    mean, total = RunningDiscLoss(), RunningDiscLoss(reduction="sum")
    for _ in range(10):
        x, z, y, s = batch(soft=False)
        x.requires_grad_()
        rows = s[y >= 0].sum()
        losses = [criterion(z, y, x, sample_weight=s) for criterion in (mean, total)]
        penalties = [loss - c.terms.ce for loss, c in zip(losses, (mean, total), strict=True)]
        torch.testing.assert_close(penalties[1], rows * penalties[0], **CLOSE)
        gradients = [torch.autograd.grad(loss, x)[0] for loss in losses]  # of the terms alone
        torch.testing.assert_close(gradients[1], rows * gradients[0], **CLOSE)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("first", [False, True])
def test_a_batch_that_is_not_finite_does_not_change_running_sums(backend, first, value):
    """With float16 an overflow is normal: GradScaler then skips the step."""
    criterion, without = (RunningDiscLoss(backend=backend) for _ in range(2))
    x, z, y, _ = batch(soft=False)
    if not first:
        assert criterion(z, y, x) == without(z, y, x)
    bad = x.clone()
    bad[0, 2] = value
    assert criterion(z, y, bad).isnan()
    for _ in range(2):
        assert criterion(z, y, x + 1) == without(z, y, x + 1)
    assert all(map(torch.equal, criterion.sums._tensors(), without.sums._tensors()))


def test_an_absent_class_is_forgotten_before_its_sums_are_subnormal(backend):
    """Rounded sums of 3e-45 do not decay further: every feature would fire for that class."""
    criterion, without = (RunningDiscLoss(momentum=0.75, backend=backend) for _ in range(2))
    x, z, y = torch.rand(8, D) / 100, torch.zeros(8, 4), torch.arange(8) % 4
    criterion(z, y, x)
    mean = criterion.sums.histograms()[0][3]
    present = y != 3
    for call in range(400):
        losses = [c(z[present], y[present], x[present]) for c in (criterion, without)]
        if call == 140:
            torch.testing.assert_close(criterion.sums.histograms()[0][3], mean)
    assert criterion.sums.sizes[3] == 0 and not criterion.sums.tables[0][3].any()
    torch.testing.assert_close(*losses)


def test_all_classes_are_forgotten_if_no_row_counts_for_long():
    criterion = RunningDiscLoss(momentum=0.75, reduction="sum")
    x, z, y = torch.rand(8, D), torch.zeros(8, 4), torch.arange(8) % 4
    for call in range(400):
        criterion(z, y, x, sample_weight=torch.full((8,), float(call == 0)))
    assert not any(sums.any() for sums in criterion.sums._tensors()[:2])
    assert criterion.terms.gini == 0


def test_a_class_of_tiny_probability_is_not_forgotten_in_its_own_batch():
    x, z, _, _ = batch(soft=False)
    y = torch.tensor([0.5, 0.25, 0.25, 0.0, 1e-30], dtype=torch.float64).repeat(N, 1)
    assert RunningDiscLoss()(z, y, x) == pytest.approx(FusedDiscLoss()(z, y, x).item(), abs=1e-12)


def test_running_sums_are_those_of_training_alone():
    criterion = RunningDiscLoss()
    x, z, y, _ = batch(soft=False)
    plain = FusedDiscLoss()(z, y, x)
    with torch.no_grad():
        assert criterion(z, y, x) == plain
    assert criterion.sums is None
    criterion(z, y, x)
    sums = criterion.sums
    assert criterion.eval()(z, y, x + 1) == FusedDiscLoss()(z, y, x + 1)
    assert criterion.sums is sums


def test_running_sums_of_transforms_are_dropped():
    criterion, (x, z, y, _) = RunningDiscLoss(), batch(soft=False)
    criterion(z, y, x)
    sums = criterion.sums
    torch.func.vmap(torch.func.grad(lambda x: criterion(z, y, x)))(x.expand(2, *x.shape))
    assert criterion.sums is sums


def test_running_sums_move_and_are_saved():
    criterion = RunningDiscLoss(momentum=0.5)
    x, z, y, _ = batch(soft=False)
    criterion(z, y, x)
    assert criterion.half().sums.sizes.dtype == x.dtype
    assert criterion.to("meta").sums.sizes.device.type == "meta"
    criterion = RunningDiscLoss(momentum=0.5)
    criterion(z, y, x)
    model = nn.ModuleDict({"criterion": criterion})
    other = nn.ModuleDict({"criterion": RunningDiscLoss(momentum=0.5)})
    other.load_state_dict(model.state_dict())
    assert isinstance(other["criterion"].sums, ClassSums)
    assert other["criterion"](z, y, x + 1) == copy.deepcopy(criterion)(z, y, x + 1)
    other.load_state_dict(nn.ModuleDict({"criterion": RunningDiscLoss()}).state_dict())
    assert other["criterion"].sums is None


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_running_sums_refuse_to_be_computed_again(use_reentrant):
    """The recomputation of a checkpoint would change them once more, and so the gradient."""
    criterion, (x, z, y, _) = RunningDiscLoss(), batch(soft=False)
    x.requires_grad_()
    loss = checkpoint(criterion, z, y, x, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match=r"during backward.*checkpoint the model alone"):
        loss.backward()
