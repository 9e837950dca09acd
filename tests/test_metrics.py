"""FeatureDiscriminability against NumPy: several batches, save and restore, bad arguments."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason="discfused.metrics needs torchmetrics")

from cases import soft_labels
from discfused import disc_terms
from discfused.metrics import FeatureDiscriminability, feature_discriminability

N, D, C = 60, 9, 5
BATCHES = [slice(0, 0), slice(0, 17), slice(17, 18), slice(18, N)]


def by_numpy(x, y, weight=None) -> dict[str, np.ndarray]:
    """All numbers, computed one feature at a time."""
    x, y = np.abs(x.double().numpy()), y.numpy()
    weight = np.ones(len(y)) if weight is None else weight.double().numpy()
    n = np.array([weight[y == c].sum() for c in range(C)])
    present = [c for c in range(C) if n[c]]
    rows = []
    for j in range(x.shape[1]):
        means = np.zeros(C)
        for c in present:
            means[c] = np.average(x[y == c, j], weights=weight[y == c])
        if not means.any():
            rows.append((0, 1, 0, 0, -1, 0, False))
            continue
        P = means / means.sum()
        best = int(means.argmax())
        rest = np.mean([means[c] for c in present if c != best]) if len(present) > 1 else 0
        rows.append(
            (means.sum(), 1 - (P**2).sum(), 1 / (P**2).sum(),
             (means[best] - rest) / (means[best] + rest), best, P[best], True)
        )  # fmt: skip
    names = ("mass", "gini", "effective_classes", "selectivity", "strongest_class",
             "strongest_share", "live")  # fmt: skip
    found = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    found["histogram"] = np.array(
        [np.average(x[y == c], axis=0, weights=weight[y == c]) if n[c] else 0 * x[0]
         for c in range(C)]
    )  # fmt: skip
    found["samples_per_class"] = n
    found["features_per_class"] = np.array([(found["strongest_class"] == c).sum()
                                            for c in range(C)])  # fmt: skip
    found["classes_without_feature"] = sum(found["features_per_class"][c] == 0 for c in present)
    found["mean_gini"] = found["gini"].mean()
    live = found["histogram"][:, found["live"]]
    q = (live / live.sum(0)).mean(1)
    pi = n / n.sum()
    found["kl"] = sum(pi[c] * np.log(pi[c] / max(q[c], 1e-10)) for c in range(C) if pi[c])
    return found


def same(got, expected, tolerance=1e-5):
    assert set(got._asdict()) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(got, name).numpy(), value, rtol=tolerance,
                                   atol=tolerance, err_msg=name)  # fmt: skip


def batch():
    """One feature is dead, one fires for class 3 only, and class 2 is absent."""
    x, y = torch.randn(N, D).relu(), torch.randint(0, C, (N,))
    y[y == 2] = 1
    x[:, 0] = 0
    x[:, 1] = 2 * (y == 3)
    return x, y


def of_batches(x, y, *weight, **options):
    metric = FeatureDiscriminability(C, D, **options)
    for part in BATCHES:
        metric.update(x[part], y[part], *(w[part] for w in weight))
    return metric


def test_against_numpy(backend):
    x, y = batch()
    expected = by_numpy(x, y)
    got = of_batches(x, y, backend=backend).compute()
    same(got, expected)
    same(feature_discriminability(x, y, C, backend=backend), expected)
    assert got.gini[1] == 0 and got.effective_classes[1] == got.selectivity[1] == 1
    assert got.strongest_class[1] == 3 and got.strongest_share[1] == 1
    weight = torch.rand(N) + 0.1
    same(of_batches(x, y, weight).compute(), by_numpy(x, y, weight))
    soft = torch.eye(C)[y]
    same(of_batches(x, soft).compute(), expected)


def test_the_overall_numbers_are_those_of_disc_terms():
    x, y = batch()
    for options in ({}, {"prior": "uniform"}, {"prior": torch.arange(1.0, C + 1)}):
        got = of_batches(x, y, **options).compute()
        gini, kl = disc_terms(x, y, C, **options)
        torch.testing.assert_close((got.mean_gini, got.kl), (gini, kl))
    x = torch.randn(N, D, 3, 2)
    got = of_batches(x, y, activation="relu").compute()
    torch.testing.assert_close(got.mean_gini, disc_terms(x, y, C, activation="relu").gini)
    x = x.movedim(1, -1)
    got = of_batches(x, y, feature_dim=-1, ignore_index=3).compute()
    expected = disc_terms(x, y, C, feature_dim=-1, ignore_index=3)
    torch.testing.assert_close((got.mean_gini, got.kl), tuple(expected))
    assert got.samples_per_class[3] == 0


def test_the_summary():
    x, y = batch()
    summary = of_batches(x, y).compute().summary()
    expected = by_numpy(x, y)
    live = expected["live"]
    assert summary == {
        "mean_gini": pytest.approx(expected["mean_gini"]),
        "kl": pytest.approx(expected["kl"], rel=1e-4),
        "mean_effective_classes": pytest.approx(expected["effective_classes"][live].mean()),
        "mean_selectivity": pytest.approx(expected["selectivity"][live].mean()),
        "live_share": pytest.approx((D - 1) / D),
        "classes_without_feature": expected["classes_without_feature"],
    }


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy", "clone"])
def test_saved_and_restored_in_the_middle(way):
    x, y = batch()
    metric = FeatureDiscriminability(C, D)
    metric.update(x[:20], y[:20])
    if way == "state_dict":
        again = FeatureDiscriminability(C, D)
        again.load_state_dict(metric.state_dict())
    elif way == "pickle":
        again = pickle.loads(pickle.dumps(metric))
    else:
        again = copy.deepcopy(metric) if way == "deepcopy" else metric.clone()
    again.update(x[20:], y[20:])
    same(again.compute(), by_numpy(x, y))
    again.reset()
    again.update(x[:20], y[:20])
    same(again.compute(), by_numpy(x[:20], y[:20]))


def test_forward_gives_the_batch_and_keeps_the_whole():
    x, y = batch()
    metric = FeatureDiscriminability(C, D)
    for part in BATCHES[1:]:
        same(metric(x[part], y[part]), by_numpy(x[part], y[part]))
    same(metric.compute(), by_numpy(x, y))


def test_double_precision_as_for_any_metric():
    x, y = batch()
    metric = FeatureDiscriminability(C, D).set_dtype(torch.float64)
    metric.update(x.double(), y)
    got = metric.compute()
    assert got.mass.dtype == torch.float64
    same(got, by_numpy(x, y), tolerance=1e-12)


def test_in_a_model_in_half_precision():
    """Sums in bfloat16 would lose samples: 256 + 1 = 256."""
    model = torch.nn.ModuleDict({"metric": FeatureDiscriminability(C, D)}).to(torch.bfloat16)
    x, y = torch.randn(600, D).relu(), torch.arange(600) % C
    for rows in range(600):
        model["metric"].update(x[rows : rows + 1], y[rows : rows + 1])
    values, expected = model["metric"].compute(), feature_discriminability(x, y, C)
    torch.testing.assert_close(values.gini, expected.gini)


@pytest.mark.parametrize(("C", "D"), [(3, 1), (1, 3), (1, 1)])
def test_one_feature_and_one_class_keep_their_dimensions(C, D):
    """Also of a second call and of a copy, for which torchmetrics prepares compute anew."""
    x, y = torch.rand(8, D), torch.arange(8) % C
    expected = feature_discriminability(x, y, C)
    metric = FeatureDiscriminability(C, D)
    found = [metric(x, y), metric.compute(), metric.compute()]
    found += [again.compute() for again in (copy.deepcopy(metric), metric.clone())]
    found.append(pickle.loads(pickle.dumps(metric)).compute())
    for got in found:
        assert [each.shape for each in got] == [each.shape for each in expected]
        torch.testing.assert_close(tuple(got), tuple(expected))
        assert torch.equal(got.order(), expected.order())


def test_nothing_and_nothing_finite():
    """Without rows every feature is dead. A row of NaN gives NaN."""
    metric = FeatureDiscriminability(C, D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics: compute before update
        empty = metric.compute()
    assert not empty.live.any() and empty.features_per_class.sum() == 0
    assert empty.mean_gini == empty.kl == empty.classes_without_feature == 0
    x, y = batch()
    x[5, 4] = torch.nan
    broken = feature_discriminability(x, y, C)
    for name in ("mass", "gini", "effective_classes", "selectivity"):
        assert getattr(broken, name)[4].isnan() and getattr(broken, name)[3].isfinite()
    assert broken.strongest_class[4] == -1 and broken.live[4]
    assert broken.mean_gini.isnan() and broken.features_per_class.sum() == D - 2


def test_one_class_is_selective_in_every_feature():
    x = torch.rand(4, D)
    got = feature_discriminability(x, torch.full((4,), 2), C)
    assert got.gini.abs().max() < 1e-6 and torch.equal(got.selectivity, torch.ones(D))
    assert got.classes_without_feature == 0


def test_features_are_ordered_by_their_class_and_then_by_purity():
    nan = float("nan")
    # features: class 1 with 3/4, class 0 with 2/3, class 1 alone, not a number, dead
    x = torch.tensor([[1.0, 4.0, 0.0, nan, 0.0], [3.0, 2.0, 5.0, nan, 0.0]])
    got = feature_discriminability(x, torch.arange(2), 2)
    assert got.order().tolist() == [1, 2, 0]
    P = got.shares()[:, got.order()]
    torch.testing.assert_close(P, torch.tensor([[2 / 3, 0, 1 / 4], [1 / 3, 1, 3 / 4]]))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"num_classes": 0}, ValueError, "num_classes is 0, expected at least 1"),
        ({"num_features": 2.5}, TypeError, "num_features is 2.5, expected an int"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh', expected one of 'abs'"),
        ({"prior": "even"}, ValueError, "prior is 'even', expected one of"),
        ({"prior": soft_labels(1, C)[0, 1:]}, ValueError, "prior has shape"),
    ],
)
def test_bad_options(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        FeatureDiscriminability(**{"num_classes": C, "num_features": D} | arguments)


def test_bad_batches():
    metric = FeatureDiscriminability(C, D)
    x, y = batch()
    with pytest.raises(ValueError, match=r"features have 3 features in dimension 1, expected num_"):
        metric.update(x[:, :3], y)
    with pytest.raises(TypeError, match="features is a list, expected a"):
        metric.update([x], y)
    with pytest.raises(IndexError, match=r"target\[0\] is 5"):
        metric.update(x, torch.full((N,), C))
    assert metric.counts.sum() == metric.table.sum() == 0


def test_the_core_does_without_the_extra(python):
    code = """
import sys
for package in ("torchmetrics", "matplotlib", "jinja2", "tqdm"):
    sys.modules[package] = None
import discfused
try:
    import discfused.metrics
except ImportError as error:
    print(error)
"""
    says = "discfused.metrics needs torchmetrics: pip install 'discfused[inspect]'"
    assert python(code).strip() == says
