"""Features belong to the forward pass that computed the logits, or there is an error."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.overrides import _get_current_function_mode_stack

from discfused import FeatureTap, FusedDiscLoss, fused_disc_loss
from models import CLASSES, Net, batch, gradients


@pytest.fixture(params=[None, "blocks"])
def layers(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["first passes", "later passes"])
def later(request):
    return request.param


def attached(layers, later=True):
    torch.manual_seed(0)
    model = Net()
    criterion = FusedDiscLoss.attach(model, layers)
    if later:  # the first pass with a loss finds the classifier
        x, y = batch()
        criterion(model(x), y)
    return model, criterion


def explicit(model, x, y, layers, logits=None):
    features = model.blocks(model.stem(x))
    features = features.mean((2, 3)) if layers is None else features
    return fused_disc_loss(model(x) if logits is None else logits, y, features)


def test_two_views(layers, later):
    model, criterion = attached(layers, later)
    (first, y), (second, _) = batch(), batch()
    both = explicit(model, first, y, layers) + explicit(model, second, y, layers)
    expected = gradients(both, model)
    a, b = model(first), model(second)
    torch.testing.assert_close(gradients(criterion(a, y) + criterion(b, y), model), expected)
    a, b = model(first), model(second)
    assert criterion(b, y) == explicit(model, second, y, layers)
    assert criterion(a, y) == explicit(model, first, y, layers)


class Slow(nn.Module):
    def forward(self, x):
        raise self.error


def test_outputs_that_are_not_logits():
    model, criterion = attached(None)
    x, y = batch()
    for output in ((model(x), x), {"logits": model(x)}):
        with pytest.raises(TypeError, match=f"logits is a {type(output).__name__}, expected"):
            criterion(output, y)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_pass_that_is_interrupted(error):
    """PyTorch calls no hook after a KeyboardInterrupt, as of the stop button of a notebook."""
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, CLASSES), Slow())
    model[3].error = error
    criteria = [FusedDiscLoss.attach(model) for _ in range(3)]
    torch.compile(torch.neg, backend="eager")(torch.ones(2))  # loads the compiler
    for called in (model, model[3]):
        with pytest.raises(error):
            called(torch.randn(6, 8))
        assert not _get_current_function_mode_stack()
        assert not any(criterion.tap._passes.recordings for criterion in criteria)
    counter = CompileCounter()
    torch.compile(lambda x: x * 3, backend=counter)(torch.ones(2))
    assert counter.frame_count == 1
    model[3] = nn.Identity()
    x, y = torch.randn(6, 8), torch.arange(6) % CLASSES
    for criterion in (criteria[1], criteria[0], criteria[2]):
        assert criterion(model(x), y) == fused_disc_loss(model(x), y, model[:2](x))
    assert not any("_compiled_call_impl" in vars(module) for module in model.modules())


def test_two_losses_of_one_pass(layers, later):
    model, criterion = attached(layers, later)
    x, y = batch()
    logits, other = model(x), y.flip(0)
    total = criterion(logits, y) + criterion(logits, other)
    torch.testing.assert_close(
        total, explicit(model, x, y, layers) + explicit(model, x, other, layers)
    )


@pytest.mark.parametrize("grad", [True, False])
def test_a_pass_in_between(layers, later, grad):
    """Another pass before the loss: of a teacher, an evaluation, an adversary."""
    model, criterion = attached(layers, later)
    (x, y), (between, _) = batch(), batch()
    logits = model(x)
    with torch.set_grad_enabled(grad):
        model(between)
    assert criterion(logits, y) == explicit(model, x, y, layers)
    with torch.no_grad():
        logits = model(x)
        model(between)
        assert criterion(logits, y) == explicit(model, x, y, layers)


def test_logits_that_were_changed_since(layers, later):
    model, criterion = attached(layers, later)
    x, y = batch()
    model(torch.randn_like(x))
    for change in (
        lambda t: t.double(), lambda t: t / 2, lambda t: t[:, :4], lambda t: t.flip(1) + 1,
        lambda t: t.mul_(2), lambda t: F.log_softmax(t, 1),
    ):  # fmt: skip
        target, logits = y % 4, change(model(x))
        expected = explicit(model, x, target, layers, logits)
        assert criterion(logits, target) == expected


def test_logits_of_several_passes_are_refused(layers, later):
    model, criterion = attached(layers, later)
    (x, y), (other, _) = batch(), batch()
    a, b = model(x), model(other)
    for logits, target in ((torch.cat([a, b]), torch.cat([y, y])), ((a + b) / 2, y)):
        with pytest.raises(RuntimeError, match=r"2 forward passes: call .* for the logits of each"):
            criterion(logits, target)


def test_logits_of_another_model_are_refused(layers, later):
    model, criterion = attached(layers, later)
    x, y = batch()
    model(x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            logits = Net()(x)
            with pytest.raises(RuntimeError, match="no features were captured with these logits"):
                criterion(logits, y)


def test_a_head_that_is_no_part_of_the_model():
    torch.manual_seed(0)
    backbone, head = nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU()), nn.Linear(9, 5)
    criterion = FusedDiscLoss.attach(backbone, "2")
    x, y = batch()
    features = backbone(x)
    assert criterion(head(features), y) == fused_disc_loss(head(features), y, features)
    criterion = FusedDiscLoss.attach(backbone)
    with pytest.raises(RuntimeError, match="no features were captured"):
        criterion(head(backbone(x)), y)


def test_threads(layers, later):
    model, criterion = attached(layers, later)
    inputs = [batch(6 + i) for i in range(4)]
    expected = [explicit(model, x, y, layers) for x, y in inputs]
    barrier, wrong = threading.Barrier(4), []

    def run(index):
        x, y = inputs[index]
        for _ in range(20):
            barrier.wait()
            logits = model(x)
            barrier.wait()
            if criterion(logits, y) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    criterion.tap.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Trained(nn.Module):
    """As a LightningModule: it contains the model and the criterion."""

    def __init__(self, layers):
        super().__init__()
        self.net = Net()
        self.criterion = FusedDiscLoss.attach(self, layers and f"net.{layers}")

    def training_step(self, x, y):
        return self.criterion(self.net(x), y)

    def forward(self, x, y):
        return self.training_step(x, y)


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_of_the_attached_module_is_called(layers, whole):
    torch.manual_seed(0)
    trained, (x, y) = Trained(layers), batch()
    expected = explicit(trained.net, x, y, layers)
    run = trained if whole else trained.training_step
    for _ in range(3):
        assert run(x, y) == expected
    with torch.no_grad():
        assert run(x, y) == expected


def test_forward_called_directly(layers):
    model, criterion = attached(layers)
    x, y = batch()
    expected = explicit(model, x, y, layers)
    assert criterion(model.forward(x), y) == expected
    model(torch.randn_like(x))
    assert criterion(model.forward(x), y) == expected
    if layers is None:
        _, criterion = attached(layers, later=False)
        with pytest.raises(RuntimeError, match=r"model\(x\), not model.forward\(x\)"):
            criterion(model.forward(x), y)


class Stops(Net):
    """An exception during a forward pass, such as Ctrl-C."""

    error = None

    def forward(self, x):
        x = self.blocks(self.stem(x))
        if self.error:
            raise self.error
        return self.fc(self.module(x.mean((2, 3))))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_pass(layers, later, error):
    torch.manual_seed(0)
    model, (x, y) = Stops(), batch()
    criterion = FusedDiscLoss.attach(model, layers)
    if later:
        criterion(model(x), y)
    earlier = model(x)
    model.error = error()
    with pytest.raises(error):
        model(x + 1)
    model.error = None
    assert criterion(model(x), y) == criterion(earlier, y) == explicit(model, x, y, layers)
    assert not torch.overrides._get_current_function_mode_stack()


def test_an_interrupted_pass_leaves_nothing_to_the_next():
    class Skips(Stops):
        def forward(self, x):
            return super().forward(x) if self.error else torch.zeros(len(x), CLASSES)

    model, (x, y) = Skips(), batch()
    criterion = FusedDiscLoss.attach(model, "blocks")
    model.error = KeyboardInterrupt()
    with torch.no_grad():  # with gradients the graph would tell
        with pytest.raises(KeyboardInterrupt):
            model(x)
        model.error = None
        logits = model(x)
        with pytest.raises(RuntimeError, match="no features were captured"):
            criterion(logits, y)


def test_logits_with_a_graph_and_features_without(layers):
    """A frozen trunk: the terms are computed, for logging."""
    model, criterion = attached(layers)
    x, y = batch()
    for part in (model.stem, model.blocks):
        part.requires_grad_(False)
    expected = explicit(model, x, y, layers)
    with pytest.warns(UserWarning, match="do not require grad"):
        assert criterion(model(x).mul(1), y) == expected


def test_a_layer_that_no_forward_calls_is_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1))

    model, x = Attention(), torch.randn(4, 3, 8)
    with FeatureTap(model, "attention.out_proj") as tap:
        logits = model(x)
        with pytest.raises(RuntimeError, match=r"'attention\.out_proj' ran as a module"):
            tap.take(logits)
