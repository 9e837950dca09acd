"""Bad arguments: the error names the argument, its value and the expected value."""

import math
import re

import pytest
import torch

from discfused import FusedDiscLoss, class_histogram, disc_terms, fused_disc_loss

N, D, C = 8, 6, 4
GOOD = {"logits": torch.randn(N, C), "target": torch.arange(N) % C, "features": torch.rand(N, D)}
SOFT = torch.full((N, C), 0.25)

BAD = [
    # argument, value, error, part of the message
    ("features", None, ValueError, "attach"),
    ("features", [], ValueError, "empty list"),
    ("features", "layer4", TypeError, "str"),
    ("features", [torch.rand(N, D), None], TypeError, "NoneType"),
    ("features", torch.rand(N), ValueError, "[8]"),
    ("features", torch.rand(N, 0), ValueError, "holds no feature"),
    ("features", torch.ones(N, D, dtype=torch.long), TypeError, "torch.int64"),
    ("features", torch.rand(N - 1, D), ValueError, "7 rows"),
    ("target", [0] * N, TypeError, "list"),
    ("target", torch.zeros(N, 1, dtype=torch.long), ValueError, "squeeze"),
    ("target", torch.zeros(N, dtype=torch.long, device="meta"), ValueError, "target.to('cpu')"),
    ("target", torch.zeros(N, dtype=torch.bool), TypeError, "torch.bool"),
    ("target", torch.eye(C, dtype=torch.long)[GOOD["target"]], ValueError, "target.float()"),
    ("target", torch.zeros(N), ValueError, "class probabilities"),
    ("target", torch.rand(N, C + 1), ValueError, "[8, 5]"),
    ("target", -SOFT, ValueError, "target[0, 0]"),
    ("target", torch.tensor([0, 1, 2, 4] * 2), IndexError, "target[3] is 4"),
    ("target", torch.tensor([0, 1, 2, 4] * 2), IndexError, "2 labels"),
    ("target", torch.tensor([0, 1, 2, -1] * 2), IndexError, "[0, 4)"),
    ("logits", torch.randn(N, C, 2), ValueError, "[8, 4, 2]"),
    ("logits", torch.randn(N - 1, C), ValueError, "7 rows"),
    ("logits", torch.ones(N, C, dtype=torch.long), TypeError, "torch.int64"),
    ("logits", torch.randn(N, C, device="meta"), ValueError, "meta"),
    ("weight", torch.ones(C + 1), ValueError, "[4]"),
    ("weight", torch.ones(C, requires_grad=True), ValueError, "detach"),
    ("weight", [1.0] * C, TypeError, "list"),
    ("sample_weight", torch.ones(N, 1), ValueError, "[8]"),
    ("sample_weight", torch.full((N,), math.nan), ValueError, "sample_weight[0]"),
    ("sample_weight", torch.ones(N, device="meta"), ValueError, "meta"),
    ("prior", "classes", ValueError, "'uniform'"),
    ("prior", None, ValueError, "batch"),
    ("prior", torch.zeros(C), ValueError, "sums to 0"),
    ("prior", torch.ones(C + 1), ValueError, "[5]"),
    ("activation", "gelu", ValueError, "'relu'"),
    ("impurity", "entropy", ValueError, "'collision'"),
    ("reduction", "batchmean", ValueError, "'none'"),
    ("backend", "cudnn", ValueError, "'reference'"),
    ("feature_dim", 0, ValueError, "samples"),
    ("feature_dim", 2, ValueError, "feature_dim is 2"),
    ("feature_dim", 1.0, TypeError, "int"),
    ("gini_weight", -0.1, ValueError, "-0.1"),
    ("kl_weight", math.inf, ValueError, "inf"),
    ("kl_weight", "0.3", TypeError, "'0.3'"),
    ("kl_weight", torch.ones(2), TypeError, "tensor([1., 1.])"),
    ("kl_weight", torch.tensor(0.3, requires_grad=True), TypeError, "expected a number"),
    ("label_smoothing", 1.5, ValueError, "between 0 and 1"),
    ("ignore_index", None, TypeError, "None"),
    ("ignore_index", 2**63, ValueError, "64-bit"),
    ("sample_weight", -torch.ones(N), ValueError, "sample_weight[0] is -1.0"),
    ("target", torch.full((N,), 2**63, dtype=torch.uint64), IndexError, "2^63 - 1"),
    ("process_group", object(), TypeError, "mesh.get_group()"),
    ("process_group", "all", ValueError, "'world'"),
    ("check_labels", "later", ValueError, "'sync'"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "words"), BAD, ids=[f"{case[0]}-{case[3]}" for case in BAD]
)
def test_bad_argument(name, value, error, words):
    with pytest.raises(error) as caught:
        fused_disc_loss(**{**GOOD, name: value})
    assert words in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*(beta|prototype)")
@pytest.mark.parametrize("name", ["features", "logits", "target", "weight"])
@pytest.mark.parametrize("convert", ["to_sparse", "to_sparse_csr", "to_mkldnn", "nested"])
def test_tensors_that_are_not_dense(name, convert):
    given = {**GOOD, "weight": torch.ones(C)}
    if convert == "nested":
        value, words = torch.nested.nested_tensor([torch.rand(3, 2)] * N), "to_padded_tensor(0.0)"
    elif convert == "to_mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no mkldnn")
    else:
        value = given[name] if given[name].dim() == 2 else SOFT
        value, words = getattr(value, convert)(), "to_dense()"
    with pytest.raises(TypeError, match=f"^{name} is a .*, expected .* {name}.{re.escape(words)}"):
        fused_disc_loss(**{**given, name: value})


def test_ignore_index_of_soft_labels():
    with pytest.raises(ValueError, match="sample_weight to 0"):
        fused_disc_loss(**{**GOOD, "target": SOFT}, ignore_index=2)


@pytest.mark.parametrize("function", [disc_terms, class_histogram])
def test_the_other_functions_check_too(function):
    x, y = GOOD["features"], GOOD["target"]
    with pytest.raises(IndexError, match=r"target\[3\] is 3"):
        function(x, y, 3)
    with pytest.raises(ValueError, match="num_classes is 0"):
        function(x, y, 0)
    with pytest.raises(TypeError, match="num_classes"):
        function(x, y, 4.0)


def test_without_features_the_door_is_there_too():
    with pytest.raises(IndexError, match="3"):  # PyTorch's own
        fused_disc_loss(GOOD["logits"][:, :3], GOOD["target"], gini_weight=0, kl_weight=0)
    with pytest.raises(TypeError, match=r"logits have dtype torch\.int64"):
        fused_disc_loss(torch.ones(2, 3).long(), torch.ones(2, 3), gini_weight=0, kl_weight=0)
    with pytest.raises(ValueError, match="sample_weight"):
        fused_disc_loss(
            torch.randn(2, 3, 4), torch.zeros(2, 4).long(), gini_weight=0, kl_weight=0,
            sample_weight=torch.ones(2),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"activation": "gelu"}, ValueError),
        ({"weight": torch.tensor([1.0, 2.0]).bool()}, TypeError),
        ({"prior": torch.tensor([1.0, math.nan])}, ValueError),
        ({"weight": [1.0, 2.0]}, TypeError),
        ({"prior": "none"}, ValueError),
        ({"gini_weight": -1}, ValueError),
        ({"reduction": "avg"}, ValueError),
        ({"feature_dim": "1"}, TypeError),
    ],
    ids=str,
)
def test_the_criterion_checks_when_it_is_made(options, error):
    with pytest.raises(error):
        FusedDiscLoss(**options)


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy", reason="PyTorch does without NumPy")
    expected = fused_disc_loss(**GOOD, gini_weight=0.25, kl_weight=2.0, ignore_index=1)
    got = fused_disc_loss(
        **GOOD, gini_weight=np.float32(0.25), kl_weight=np.int64(2), ignore_index=np.int64(1)
    )
    assert got == expected
    x, y = GOOD["features"], GOOD["target"]
    assert disc_terms(x, y, np.int32(C)) == disc_terms(x, y, C)


def test_weights_of_the_terms_may_be_tensors_of_one_number():
    expected = fused_disc_loss(**GOOD, gini_weight=0.25)
    assert fused_disc_loss(**GOOD, gini_weight=torch.tensor(0.25)) == expected
    criterion = FusedDiscLoss()
    criterion.gini_weight = torch.tensor(0.25)
    assert criterion(**GOOD) == expected


def test_labels_of_a_subclass_of_tensor(backend):
    class Labels(torch.Tensor):
        pass

    labels = GOOD["target"].as_subclass(Labels)
    expected = fused_disc_loss(**GOOD, backend=backend)
    assert fused_disc_loss(**{**GOOD, "target": labels}, backend=backend) == expected


def test_distributed_tensors_are_refused(process_group):
    distributed = pytest.importorskip("torch.distributed.tensor")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    features = distributed.distribute_tensor(GOOD["features"], mesh)
    with pytest.raises(TypeError, match=r"a DTensor, .* features\.full_tensor\(\)"):
        fused_disc_loss(**{**GOOD, "features": features})
    full = {**GOOD, "features": features.full_tensor()}
    assert fused_disc_loss(**full) == fused_disc_loss(**GOOD)


ABSENT = """
import resource, sys, torch
from discfused import disc_terms
x, y = torch.rand(8, 6), torch.arange(8) % 4
disc_terms(x, y, 4, backend=sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
disc_terms(x, y, 50_000_000, backend=sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_absent_classes_cost_no_memory(fused_backend, python):
    """50 million classes, of which 4 are present. An array over all would need 400 MB."""
    assert int(python(ABSENT, fused_backend)) < 40_000
