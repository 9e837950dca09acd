"""What must be true of the terms whatever computes them: each can be broken silently.

Properties, over batches that Hypothesis draws; values and gradients. Empty batches and bad numbers
are in test_edges.py.
"""

import math

import pytest
import torch
from torch import Tensor

from properties import batches, close, fact, formulas, terms, terms_and_gradients  # isort: skip
from hypothesis import given
from hypothesis import strategies as st

from cases import DTYPES
from discfused import class_histogram
from discfused.backends.contract import accumulation_dtype

SCALE_FREE = ("relu", "abs", "square")


@fact
@given(batch=batches())
def test_values_and_gradients_are_those_of_the_formulas(backend, batch):
    values, gradients = terms_and_gradients(batch, backend)
    expected = formulas(batch)
    close(values, expected.values)
    close(gradients, expected.gradients, expected.gradients.abs())


@fact
@given(batch=batches(), dtype=st.sampled_from(DTYPES))
def test_bounds(backend, batch, dtype):
    gini, kl = terms(batch.having(x=batch.x.to(dtype)), backend)
    assert gini.dtype == kl.dtype == accumulation_dtype(dtype)
    assert 0 <= gini <= 1 - 1 / batch.num_classes + 8 * torch.finfo(accumulation_dtype(dtype)).eps
    assert 0 <= kl < math.inf


@fact
@given(batch=batches())
def test_gini_is_zero_iff_every_live_feature_fires_for_one_class_only(backend, batch):
    P = formulas(batch).P
    alone = bool(((P > 0).sum(0) == 1).all())
    assert (terms(batch, backend)[0] < 1e-9) == alone


@fact
@given(batch=batches(soft=False, activations=("relu",)))
def test_gini_is_zero_with_zero_gradient_where_features_are_pure(backend, batch):
    """Every feature is high for one class, and the same low number for all others."""
    own = torch.arange(batch.x.shape[1]) % batch.num_classes
    low = 0.0 if not batch.options["center"] else -1.0
    pure = torch.where(batch.target[:, None] == own, batch.x.abs() + 0.1, low)
    batch = batch.having(x=pure)
    values, gradients = terms_and_gradients(batch, backend)
    close(values[0], torch.zeros_like(values[0]), tolerance=1e-12)
    close(gradients[0], torch.zeros_like(gradients[0]))


@fact
@given(batch=batches())
def test_kl_is_zero_iff_features_match_the_prior(backend, batch):
    """Pinsker: KL is at least half the squared distance, so it is 0 for nothing but the match."""
    P, q, pi, *_ = formulas(batch)
    _, kl = terms(batch, backend)
    if P.shape[1] == 0:
        assert kl == 0
        return
    assert kl >= 0.5 * (q - pi).abs().sum() ** 2 - 1e-7  # of the floor under the denominator
    values, gradients = terms_and_gradients(batch.having(prior=q), backend)
    close(values[1], torch.zeros_like(values[1]), tolerance=1e-12)
    close(gradients[1], torch.zeros_like(gradients[1]), gradients.abs().max())


@fact
@given(batch=batches(activations=SCALE_FREE), data=st.data())
def test_scale_of_a_feature_changes_nothing(backend, batch, data):
    D = batch.x.shape[1]
    exponents = data.draw(st.lists(st.floats(-12, 12), min_size=D, max_size=D), label="log10 scale")
    factor = 10 ** torch.tensor(exponents, dtype=torch.float64)
    values, gradients = terms_and_gradients(batch, backend)
    scaled, scaled_gradients = terms_and_gradients(batch.having(x=batch.x * factor), backend)
    close(scaled, values)
    close(scaled_gradients * factor, gradients, gradients.abs())
    close((batch.x * gradients).sum(1), torch.zeros(2, D).double(), (batch.x * gradients).abs())


@fact
@given(batch=batches(center=True), data=st.data())
def test_shift_of_a_centred_feature_changes_nothing(backend, batch, data):
    D = batch.x.shape[1]
    shift = data.draw(st.lists(st.floats(-10, 10), min_size=D, max_size=D), label="shift")
    values, gradients = terms_and_gradients(batch, backend)
    moved = batch.having(x=batch.x + torch.tensor(shift, dtype=torch.float64))
    shifted, shifted_gradients = terms_and_gradients(moved, backend)
    close(shifted, values)
    close(shifted_gradients, gradients, gradients.abs())
    close(gradients.sum(1), torch.zeros(2, D).double(), gradients.abs())


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
    by_class = {key: batch.options[key][names.argsort()] for key in ("weight", "prior")
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
    one_hot[y < 0] = 0  # no share of any class: the row does not count
    hard, hard_gradients = terms_and_gradients(batch, backend)
    soft, soft_gradients = terms_and_gradients(batch.having(target=one_hot), backend)
    close(soft, hard, tolerance=1e-12)
    close(soft_gradients, hard_gradients, hard_gradients.abs(), tolerance=1e-12)


@fact
@given(batch=batches(constant=False), data=st.data())
def test_given_the_mean_the_histogram_of_a_batch_is_the_sum_of_its_parts(backend, batch, data):
    N, D = batch.x.shape
    cuts = data.draw(st.lists(st.integers(0, N), max_size=3).map(sorted), label="cuts")
    options = {key: batch.options[key] for key in ("activation", "weight") if key in batch.options}
    sample_weight = batch.options.get("sample_weight", torch.ones(N, dtype=torch.float64))
    y, C, center = batch.target, batch.num_classes, batch.options["center"]

    whole = batch.x.clone().requires_grad_()
    H = class_histogram(
        whole, y, C, center=center, sample_weight=sample_weight, backend=backend, **options
    )
    x = batch.x.clone().requires_grad_()
    given_mean = 0
    if center:  # by autograd, so that its gradient is that of the formula
        raw = {"center": False, "activation": "relu", "weight": options.get("weight")}
        n = torch.stack(
            [class_histogram(torch.ones(1, 1).double(), y[i : i + 1], C, backend="reference",
                             sample_weight=sample_weight[i : i + 1], **raw).sum()
             for i in range(N)]
        )  # fmt: skip
        given_mean = (n[:, None] * x).sum(0) / n.sum().clamp(min=1e-300)
    parts = [
        class_histogram(
            (x - given_mean)[start:stop], y[start:stop], C, center=False, backend=backend,
            sample_weight=sample_weight[start:stop], **options,
        )
        for start, stop in zip([0, *cuts], [*cuts, N], strict=True)
    ]  # fmt: skip
    close(sum(parts), H)
    upstream = torch.linspace(-1, 1, C * D, dtype=torch.float64).view(C, D)
    H.backward(upstream)
    sum(parts).backward(upstream)
    close(x.grad, whole.grad, whole.grad.abs())


@fact
@given(batch=batches(rows=(2, 12)), value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_bad_number_is_never_a_plausible_result(backend, batch, value):
    """In the row 1, which counts; and in the row 0, which does not."""
    N, D = batch.x.shape
    target = batch.target.clone()
    if not target.is_floating_point():
        target[1] = 0
    weight = torch.ones(N)
    weight[0] = 0
    batch = batch.having(target=target, weight=None, sample_weight=weight)
    x = batch.x.clone()
    x[1, 0] = value
    values, gradients = terms_and_gradients(batch.having(x=x), backend)
    assert values.isnan().all()
    if batch.options["center"] or value != -math.inf:  # below 0 every activation is flat in the end
        assert gradients[:, :, 0].isnan().any()

    x = batch.x.clone()
    x[0, D - 1] = value
    values, gradients = terms_and_gradients(batch.having(x=x), backend)
    without = batch.having(x=batch.x[1:], target=target[1:], sample_weight=None)
    expected, expected_gradients = terms_and_gradients(without, backend)
    close(values, expected)
    close(gradients[:, 1:], expected_gradients, expected_gradients.abs())
    assert (gradients[:, 0] == 0).all()


@fact
@given(batch=batches(), case=st.sampled_from(["no rows", "all ignored", "one row", "constant"]))
def test_nothing_to_say_is_zero_with_zero_gradient(backend, batch, case):
    """Nothing is above its own mean where there is one row, or where all rows are alike."""
    batch = batch.having(center=True, activation="relu")
    N = len(batch.x)
    if case in ("no rows", "one row"):
        n = ("no rows", "one row").index(case)
        weight = batch.options.get("sample_weight")
        batch = batch.having(
            x=batch.x[:n], target=batch.target[:n],
            sample_weight=None if weight is None else weight[:n],
        )  # fmt: skip
    elif case == "all ignored":
        batch = batch.having(target=torch.full((N,), -100))
    else:
        batch = batch.having(x=batch.x[:1].expand(batch.x.shape))
    values, gradients = terms_and_gradients(batch, backend)
    assert values.tolist() == [0, 0]
    assert not gradients.any()


@fact
@given(batch=batches(soft=False))
def test_one_class_only_has_no_impurity_and_matches_its_own_prior(backend, batch):
    only = batch.num_classes - 1
    batch = batch.having(target=torch.full((len(batch.x),), only), prior="batch")
    values, gradients = terms_and_gradients(batch, backend)
    close(values, torch.zeros(2).double(), tolerance=1e-12)
    close(gradients, torch.zeros_like(gradients))


@pytest.mark.parametrize("small", [False, True], ids=["constant", "subnormal"])
@fact
@given(batch=batches(center=True, activations=SCALE_FREE, rows=(2, 12)))
def test_dead_features_get_no_gradient(backend, small, batch):
    x = batch.x.clone()
    x[:, 0] = x[:, 0] * 1e-310 if small else 0.75
    values, gradients = terms_and_gradients(batch.having(x=x), backend)
    assert not gradients[:, :, 0].any()
    if x.shape[1] > 1:  # and do not change those of the others
        rest, rest_gradients = terms_and_gradients(batch.having(x=x[:, 1:]), backend)
        close(values, rest)
        close(gradients[:, :, 1:], rest_gradients, rest_gradients.abs())


@fact
@given(batch=batches(soft=True))
def test_labels_weights_and_prior_are_constants(backend, batch):
    """No gradient flows to y, t, w, s, pi: those that may require one get none."""
    soft, x = batch.target.clone().requires_grad_(), batch.x.clone().requires_grad_()
    gini, kl = terms(batch.having(x=x, target=soft), backend)
    assert torch.autograd.grad(gini + kl, soft, allow_unused=True) == (None,)
    for name in ("weight", "sample_weight", "prior"):
        value = batch.options.get(name)
        if isinstance(value, Tensor):
            with pytest.raises(ValueError, match=name):
                terms(batch.having(**{name: value.clone().requires_grad_()}), backend)
