"""torch.compile: no graph break, few graphs, and the same numbers as eager mode."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from cases import RELEASE, features, labels, soft_labels
from discfused import FusedDiscLoss, class_histogram, disc_terms, fused_disc_loss
from models import CLASSES, Net, batch, gradients

D, C = 12, 10


pytestmark = pytest.mark.usefixtures("nothing_compiled")


def compiled(function, backend="aot_eager"):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True), counter


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_function_equals_eager(backend, soft, reduction):
    options = {
        "reduction": reduction, "backend": backend, "weight": torch.rand(C),
        "sample_weight": torch.rand(20), "prior": "uniform",
    }  # fmt: skip
    target = soft_labels(20, C).float() if soft else labels(20, C, "some ignored")

    def loss(logits, x):
        return fused_disc_loss(logits, target, x, **options)

    inputs = torch.randn(20, C), features(20, D, torch.float32)
    function, _ = compiled(loss)
    results = []
    for run in (loss, function):
        args = leaves(*inputs)
        value = run(*args)
        results.append([value.detach(), *torch.autograd.grad(value.sum(), args)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impurity", ["gini", "collision"])
def test_histogram_and_terms_equal_eager(backend, impurity):
    x, y, upstream = features(20, D), labels(20, C), torch.randn(C, D).double()

    def both(x):
        H = class_histogram(x, y, C, backend=backend)
        gini, kl = disc_terms(x, y, C, impurity=impurity, backend=backend)
        return (H * upstream).sum() + 2 * gini + 3 * kl

    function, _ = compiled(both)
    results = []
    for run in (both, function):
        (arg,) = leaves(x)
        value = run(arg)
        results.append([value.detach(), torch.autograd.grad(value, arg)[0]])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


SIZES = (16, 32, 5, 64, 39, 40, 41, 10, 9, 128)
# PyTorch 2.6 compares the sizes under torch.sym_min, which 2.11 does not: one graph for N <= C
OLD = RELEASE < (2, 11)


def count_graphs(criterion, sizes, num_classes) -> int:
    function, counter = compiled(criterion)
    for n in sizes:
        logits, x = leaves(torch.randn(n, num_classes), torch.randn(n, D))
        y = labels(n, num_classes)
        loss = function(logits, y, x)
        loss.backward()
        torch.testing.assert_close(loss, criterion(logits, y, x), equal_nan=True)
    return counter.frame_count


@pytest.mark.parametrize("num_classes", [C, 40])
@pytest.mark.parametrize("sizes", [SIZES, (64, *SIZES[::-1], 2, 3)], ids=["up", "down"])
def test_at_most_two_graphs_over_any_sequence_of_batch_sizes(backend, sizes, num_classes):
    criterion = FusedDiscLoss(backend=backend)
    assert count_graphs(criterion, sizes, num_classes) <= (3 if OLD else 2)


def test_no_more_graphs_than_cross_entropy_for_batches_of_one_row_and_of_none(backend):
    """PyTorch compiles the sizes 0 and 1 as constants."""

    def cross_entropy(logits, target, features):
        return F.cross_entropy(logits, target)

    sizes = (16, 32, 1, 5, 0, 64)
    expected = count_graphs(cross_entropy, sizes, C)
    torch.compiler.reset()
    assert count_graphs(FusedDiscLoss(backend=backend), sizes, C) <= expected + OLD


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="compiles a module anew for each of its floats"
)
def test_weights_that_change_do_not_compile_for_ever(backend):
    criterion = FusedDiscLoss(backend=backend)
    function, counter = compiled(criterion)
    logits, x, y = torch.randn(16, C), torch.randn(16, D), labels(16, C)
    for step in range(8):
        criterion.gini_weight = criterion.kl_weight = 0.1 * (step + 1)
        torch.testing.assert_close(function(logits, y, x), criterion(logits, y, x))
        gini = criterion.terms.gini
    assert gini == disc_terms(x, y, C, backend=backend).gini
    assert counter.frame_count <= 3


@pytest.mark.parametrize("layers", [None, "fc"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_attached_to_a_compiled_model(backend, when, layers):
    torch.manual_seed(1)
    model, (x, y) = Net(), batch()
    options = {"backend": backend, "capture": "input"}
    plain = FusedDiscLoss.attach(model, layers, **options)
    expected = plain(model(x), y)
    wanted = gradients(expected, model)
    plain.tap.remove()

    if when == "after":
        criterion = FusedDiscLoss.attach(model, layers, **options)
        if layers is None:  # the classifier is found in a pass that is not compiled
            criterion(model(x), y)
    fast, counter = compiled(model)
    if when == "before":
        criterion = FusedDiscLoss.attach(fast, layers, **options)
    for _ in range(4):
        loss = criterion(fast(x), y)
        found = gradients(loss, model)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, wanted)
    assert list(model.state_dict()) == list(Net().state_dict())
    assert counter.frame_count == 1

    logits = fast(x)
    criterion.tap.remove()
    fast(x)
    with pytest.raises(RuntimeError, match="was removed"):
        criterion(logits, y)
    assert criterion.tap._passes.compiled == [None]


def test_code_compiled_before_the_tap_is_an_error_with_a_cure(backend):
    model, (x, y) = Net(), batch()
    fast, _ = compiled(model)
    fast(x)
    criterion = FusedDiscLoss.attach(fast, "blocks", backend=backend)
    with pytest.raises(RuntimeError, match=r"call torch\.compiler\.reset\(\) once"):
        criterion(fast(x), y)
    torch.compiler.reset()
    torch.testing.assert_close(criterion(fast(x), y), criterion(model(x), y))


def test_an_unrelated_model_is_not_compiled_anew():
    other = nn.Sequential(nn.Linear(3, 2))
    fast, counter = compiled(other)
    fast(torch.randn(4, 3))
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model)
    criterion(model(x), y)
    criterion.tap.remove()
    fast(torch.randn(4, 3))
    assert counter.frame_count == 1


@pytest.mark.parametrize("in_place", [False, True])
def test_the_first_pass_must_not_be_compiled(in_place):
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model)
    counter = CompileCounterWithBackend("aot_eager")
    if in_place:
        model.compile(backend=counter)
    fast = model if in_place else torch.compile(model, backend=counter)
    with pytest.raises(RuntimeError, match=r"run it under torch\.compiler\.set_stance"):
        fast(x)
    with torch.compiler.set_stance("force_eager"):
        expected = criterion(fast(x), y)
    before = counter.frame_count
    for _ in range(4):
        torch.testing.assert_close(criterion(fast(x), y), expected)
    assert counter.frame_count == before + 1


def test_the_first_pass_with_fullgraph():
    criterion = FusedDiscLoss.attach(model := Net())
    words = "disable" if OLD else "must not be compiled"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=words):
        compiled(model)[0](batch()[0])
    assert not criterion.tap._passes.recordings


def test_features_of_another_compiled_pass_are_refused():
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model, "blocks")
    fast, _ = compiled(model)
    first = fast(x)
    fast(x + 1)
    with pytest.raises(RuntimeError, match="no features were captured"):
        criterion(first, y)
    logits = fast(x)
    with torch.no_grad():
        fast(x + 1)
    with pytest.raises(RuntimeError, match="no features were captured"):
        criterion(logits, y)
    assert criterion(fast(x), y).isfinite()


@pytest.mark.parametrize("how", ["eager", "aot_eager"])
def test_two_losses_of_one_compiled_pass(how):
    """As mixup is often written: lam * criterion(logits, a) + (1 - lam) * criterion(logits, b)."""
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(fast := torch.compile(model, backend=how, fullgraph=True))
    expected = criterion(model(x), y)
    for _ in range(2):
        logits = fast(x)
        for _ in range(3):
            torch.testing.assert_close(criterion(logits.double(), y).float(), expected)
        torch.testing.assert_close(criterion(logits, y), expected)
    kept = weakref.ref(criterion.tap.take(logits))
    del logits
    gc.collect()
    assert kept() is None


def test_inductor(backend, monkeypatch, tmp_path):
    """Forward and backward with the default compiler. Its cache is new, because cache entries of
    another version of this library have the same operator names."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    criterion = FusedDiscLoss.attach(model, backend=backend)
    x, y = batch()
    expected = criterion(model(x), y)
    wanted = gradients(expected, model)
    function = torch.compile(lambda x, y: criterion(model(x), y), fullgraph=True)
    loss = function(x, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), wanted)
    x, y = batch(9)  # a dynamic batch
    torch.testing.assert_close(function(x, y), criterion(model(x), y))
