"""Properties of the terms and their gradients for every backend, over random batches of Hypothesis.

test_edges.py tests empty batches and numbers that are not finite.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from properties import batches, close, fact, formulas, terms, terms_and_gradients  # isort: skip
from hypothesis import given
from hypothesis import strategies as st

from cases import DTYPES
from discfused import class_histogram
from discfused._definitions import accumulation_dtype


@fact
@given(batch=batches())
def test_values_and_gradients_are_those_of_the_formulas(backend, batch):
    values, gradients = terms_and_gradients(batch, backend)
    expected = formulas(batch)
    close(values, expected.values)
    close(gradients, expected.gradients, expected.gradients.abs())


def authors(x: Tensor, y: Tensor, C: int) -> Tensor:
    """The procedure of the paper's authors, for hard labels and without dead features."""
    one_hot = F.one_hot(y, C).to(x)
    counts = one_hot.sum(0)
    P = F.normalize(one_hot.T @ x.abs() / counts.clamp(min=1)[:, None], p=1, dim=0)
    log_q = (P.sum(1) / P.sum() + 1e-10).log()
    return torch.stack([(1 - P.square().sum(0)).mean(),
                        F.kl_div(log_q, counts / len(y), reduction="sum")])  # fmt: skip


@fact
@given(batch=batches(soft=False, dead=False))
def test_the_terms_are_those_of_the_paper(backend, batch):
    batch = batch.having(
        target=batch.target.clamp(min=0), sample_weight=None, activation="abs", impurity="gini",
        prior="batch",
    )  # fmt: skip
    x = batch.x.detach().requires_grad_()
    expected = authors(x, batch.target, batch.num_classes)
    gradients = [torch.autograd.grad(term, x, retain_graph=True)[0] for term in expected]
    got, got_gradients = terms_and_gradients(batch, backend)
    # They add 1e-10 to q, the specification clamps: a relative change of A_c = -pi_c / q_c.
    _, q, pi, *_ = formulas(batch)
    added = 1e-10 / q[pi > 0].min().item()
    close(got, expected.detach(), tolerance=1e-9 + added)
    largest = torch.stack(gradients).abs()
    close(got_gradients, torch.stack(gradients), largest, tolerance=1e-9 + 2 * added)


@fact
@given(batch=batches(), dtype=st.sampled_from(DTYPES))
def test_bounds(backend, batch, dtype):
    term, kl = terms(batch.having(x=batch.x.to(dtype)), backend)
    assert term.dtype == kl.dtype == accumulation_dtype(dtype)
    expected = formulas(batch)
    dead = 1 - expected.P.shape[1] / batch.x.shape[1]
    most = 1.0
    if batch.options["impurity"] == "gini":
        y = batch.target
        present = batch.num_classes if y.is_floating_point() else len(y[y >= 0].unique())
        most = dead + (1 - dead) * (1 - 1 / max(present, 1))
    assert 0 <= term <= most + 8 * torch.finfo(accumulation_dtype(dtype)).eps
    assert 0 <= kl < math.inf


@fact
@given(batch=batches(dead=False))
def test_impurity_is_zero_iff_every_feature_fires_for_one_class_only(backend, batch):
    P = formulas(batch).P
    alone = bool(((P > 0).sum(0) == 1).all()) and P.shape[1] == batch.x.shape[1]
    several = (P > 0).any(1).sum() > 1
    if P.numel() and (several or batch.options["impurity"] == "gini"):
        assert (terms(batch, backend)[0] < 1e-9) == alone


@fact
@given(batch=batches(soft=False))
def test_impurity_is_zero_with_zero_gradient_where_features_are_pure(backend, batch):
    """Every feature fires for one present class only."""
    target = batch.target.clamp(min=0)
    own = target[torch.arange(batch.x.shape[1]) % len(target)]
    pure = torch.where(target[:, None] == own, batch.x.abs() + 0.1, 0)
    batch = batch.having(x=pure, target=target, sample_weight=None)
    values, gradients = terms_and_gradients(batch, backend)
    close(values[0], torch.zeros_like(values[0]), tolerance=1e-12)
    close(gradients[0], torch.zeros_like(gradients[0]))


@fact
@given(batch=batches())
def test_kl_is_zero_iff_features_match_the_prior(backend, batch):
    """Pinsker's inequality: KL is at least half the squared distance, so it is 0 only if q = pi."""
    P, q, pi, *_ = formulas(batch)
    _, kl = terms(batch, backend)
    if P.shape[1] == 0 or not P.any():
        assert kl == 0
        return
    assert kl >= 0.5 * (q - pi).abs().sum() ** 2 - 1e-7  # of the floor under the denominator
    values, gradients = terms_and_gradients(batch.having(prior=q), backend)
    close(values[1], torch.zeros_like(values[1]), tolerance=1e-12)
    close(gradients[1], torch.zeros_like(gradients[1]), gradients.abs().max())


@fact
@given(batch=batches())
def test_collision_is_gini_with_one_factor_for_each_feature(backend, batch):
    """d collision / d x_ij = d gini / d x_ij / (sum_c P_cj^2 log K)"""
    P = formulas(batch).P
    values, gini = terms_and_gradients(batch.having(impurity="gini"), backend)
    other, collision = terms_and_gradients(batch.having(impurity="collision"), backend)
    close(other[1], values[1], tolerance=0)
    y, weight = batch.target, batch.options.get("sample_weight", torch.ones(len(batch.x)))
    m = y if y.is_floating_point() else (y[:, None] == torch.arange(batch.num_classes)).double()
    K = ((m * weight[:, None]).sum(0) > 0).sum()
    if K < 2:
        assert other[0] == 0 and not collision[0].any()
        return
    if P.shape[1] != batch.x.shape[1]:
        return
    factor = 1 / (P.square().sum(0) * K.double().log())
    close(collision[0], gini[0] * factor, gini[0].abs() * factor)


@fact
@given(batch=batches(), data=st.data())
def test_scale_of_a_feature_changes_nothing(backend, batch, data):
    D = batch.x.shape[1]
    exponents = data.draw(st.lists(st.floats(-40, 40), min_size=D, max_size=D), label="log10 scale")
    signs = [-1, 1] if batch.options["activation"] == "abs" else [1]
    sign = data.draw(st.lists(st.sampled_from(signs), min_size=D, max_size=D), label="sign")
    factor = 10 ** torch.tensor(exponents, dtype=torch.float64) * torch.tensor(sign)
    values, gradients = terms_and_gradients(batch, backend)
    scaled, scaled_gradients = terms_and_gradients(batch.having(x=batch.x * factor), backend)
    close(scaled, values)
    close(scaled_gradients * factor, gradients, gradients.abs())
    close((batch.x * gradients).sum(1), torch.zeros(2, D).double(), (batch.x * gradients).abs())


@fact
@given(batch=batches(), data=st.data())
def test_sample_weight_is_repetition(backend, batch, data):
    N = len(batch.x)
    k = data.draw(st.lists(st.integers(0, 3), min_size=N, max_size=N), label="times")
    rows = torch.repeat_interleave(torch.arange(N), torch.tensor(k))
    weighted, gradients = terms_and_gradients(batch.having(sample_weight=torch.tensor(k)), backend)
    repeated, repeated_gradients = terms_and_gradients(
        batch.having(x=batch.x[rows], target=batch.target[rows], sample_weight=None), backend
    )
    close(weighted, repeated)
    summed = torch.zeros_like(gradients).index_add(1, rows, repeated_gradients)
    close(gradients, summed, gradients.abs())


@fact
@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_permutations_change_nothing(backend, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    C, y = batch.num_classes, batch.target
    rows, columns, names = (torch.randperm(n, generator=generator) for n in (*batch.x.shape, C))
    by_class = {key: batch.options[key][names.argsort()] for key in ("prior",)
                if isinstance(batch.options.get(key), Tensor)}  # fmt: skip
    by_row = {key: batch.options[key][rows] for key in ("sample_weight",) if key in batch.options}
    renamed = (
        y[:, names.argsort()]
        if y.is_floating_point()
        else torch.where(y < 0, y, names[y.clamp(min=0)])
    )
    values, gradients = terms_and_gradients(batch, backend)
    permuted, permuted_gradients = terms_and_gradients(
        batch.having(x=batch.x[rows][:, columns], target=renamed[rows], **by_class, **by_row),
        backend,
    )
    close(permuted, values)
    close(permuted_gradients, gradients[:, rows][:, :, columns], gradients.abs())


@fact
@given(batch=batches(), times=st.integers(2, 4))
def test_stacking_a_batch_on_itself_changes_nothing(backend, batch, times):
    values, gradients = terms_and_gradients(batch, backend)
    rows = torch.arange(len(batch.x)).repeat(times)
    by_row = {key: batch.options[key][rows] for key in ("sample_weight",) if key in batch.options}
    stacked, stacked_gradients = terms_and_gradients(
        batch.having(x=batch.x[rows], target=batch.target[rows], **by_row), backend
    )
    close(stacked, values)
    close(stacked_gradients * times, gradients[:, rows], gradients.abs())


@fact
@given(batch=batches(soft=False))
def test_one_hot_equals_hard(backend, batch):
    y = batch.target
    one_hot = torch.eye(batch.num_classes, dtype=torch.float64)[y.clamp(min=0)]
    one_hot[y < 0] = 0  # of no class: the row does not count
    hard, hard_gradients = terms_and_gradients(batch, backend)
    soft, soft_gradients = terms_and_gradients(batch.having(target=one_hot), backend)
    close(soft, hard, tolerance=1e-12)
    close(soft_gradients, hard_gradients, hard_gradients.abs(), tolerance=1e-12)


@fact
@given(batch=batches(soft=False), data=st.data())
def test_repeating_a_class_moves_kl_through_the_prior_alone(backend, batch, data):
    c = data.draw(st.integers(0, batch.num_classes - 1), label="class")
    rows = torch.cat([torch.arange(len(batch.x)), (batch.target == c).nonzero().flatten()])
    by_row = {key: batch.options[key][rows] for key in ("sample_weight",) if key in batch.options}
    repeated = batch.having(x=batch.x[rows], target=batch.target[rows], **by_row)
    prior = torch.linspace(1, 2, batch.num_classes, dtype=torch.float64)
    close(terms(repeated, backend)[0], terms(batch, backend)[0])
    given_prior = [terms(each.having(prior=prior), backend) for each in (repeated, batch)]
    close(*given_prior)


@fact
@given(batch=batches(), data=st.data())
def test_sums_and_sizes_of_a_batch_are_those_of_its_parts(backend, batch, data):
    """n_c H_cj and n_c add up, so sums over several processes are exact."""
    N = len(batch.x)
    cuts = data.draw(st.lists(st.integers(0, N), max_size=3).map(sorted), label="cuts")
    weight = batch.options.get("sample_weight", torch.ones(N, dtype=torch.float64))
    y, C, activation = batch.target, batch.num_classes, batch.options["activation"]
    m = y if y.is_floating_point() else (y[:, None] == torch.arange(C)).double()

    def sums(part: slice) -> tuple[Tensor, Tensor]:
        H = class_histogram(
            batch.x[part], y[part], C, sample_weight=weight[part], activation=activation,
            backend=backend,
        )  # fmt: skip
        sizes = (m * weight[:, None])[part].sum(0)
        return sizes[:, None] * H, sizes

    parts = [slice(*ends) for ends in zip([0, *cuts], [*cuts, N], strict=True)]
    for whole, part in zip(sums(slice(N)), zip(*map(sums, parts), strict=True), strict=True):
        close(sum(part), whole)


@fact
@given(
    batch=batches(rows=(2, 12), dead=False),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_bad_number_is_never_a_plausible_result(backend, batch, value):
    """NaN or infinity in row 1, which counts, and in row 0, which does not."""
    target = batch.target.clone()
    if not target.is_floating_point():
        target[1] = 0
    weight = torch.ones(len(batch.x))
    weight[0] = 0
    batch = batch.having(target=target, sample_weight=weight)
    x = batch.x.clone()
    x[1, 0] = value
    values, _ = terms_and_gradients(batch.having(x=x), backend)
    assert values.isnan().all()

    x = batch.x.clone()
    x[0, -1] = value
    values, gradients = terms_and_gradients(batch.having(x=x), backend)
    without = batch.having(x=batch.x[1:], target=target[1:], sample_weight=None)
    expected, expected_gradients = terms_and_gradients(without, backend)
    close(values, expected)
    close(gradients[:, 1:], expected_gradients, expected_gradients.abs())
    assert (gradients[:, 0] == 0).all()


@fact
@given(batch=batches(dead=False))
def test_a_dead_feature_counts_as_one_and_gets_no_gradient(backend, batch):
    D = batch.x.shape[1]
    x = torch.cat([batch.x, torch.zeros(len(batch.x), 1)], 1)
    values, gradients = terms_and_gradients(batch, backend)
    more, more_gradients = terms_and_gradients(batch.having(x=x), backend)
    assert not more_gradients[:, :, D].any()
    if batch.options["impurity"] == "gini" and formulas(batch).pi.any() and (values != 0).any():
        close(more[0] * (D + 1), values[0] * D + 1)
    close(more[1], values[1])  # a dead feature has no part in q
    close(more_gradients[1, :, :D], gradients[1], gradients.abs())


@fact
@given(batch=batches(soft=True))
def test_labels_weights_and_prior_are_constants(backend, batch):
    """y, t, s and pi get no gradient, even if they require one."""
    soft, x = batch.target.clone().requires_grad_(), batch.x.clone().requires_grad_()
    term, kl = terms(batch.having(x=x, target=soft), backend)
    assert torch.autograd.grad(term + kl, soft, allow_unused=True) == (None,)
    for name in ("sample_weight", "prior"):
        value = batch.options.get(name)
        if isinstance(value, Tensor):
            with pytest.raises(ValueError, match=name):
                terms(batch.having(**{name: value.clone().requires_grad_()}), backend)
