"""FeatureTap and the attached criterion: layers, captures, errors, copies, in-place layers."""

import copy
import pickle

import pytest
import torch
from torch import nn

from discfused import FeatureTap, FusedDiscLoss, disc_terms
from models import CLASSES, Net, Recurrent, batch

MISSING = "no features were captured"


def test_named_layers_and_captures():
    model, (x, _) = Net(), batch()
    stem = model.stem(x)
    for layers, capture, expected in [
        ("stem", "output", stem),
        (model.stem, "output", stem),
        ("stem", "input", x),
        ("blocks.0", "input", stem),
        (["stem", model.blocks], "output", [stem, model.blocks(stem)]),
        (["stem"], "output", [stem]),
    ]:
        with FeatureTap(model, layers, capture=capture) as tap:
            logits = model(x)
            torch.testing.assert_close(tap.take(logits), expected)


def test_a_layer_that_runs_several_times_gives_its_last_run():
    model, x = Recurrent(), torch.randn(4, 6)
    with FeatureTap(model, "cell") as tap:
        logits = model(x)
        captured = tap.take(logits)
    for _ in range(2):
        x = torch.tanh(model.cell(x))
    torch.testing.assert_close(captured, model.cell(x))


def test_tuple_outputs_and_keyword_inputs():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4)
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.head(input=self.lstm(x)[0].mean(0))

    model, x = Wrapper(), torch.randn(5, 2, 3)
    with FeatureTap(model, "lstm") as tap, FeatureTap(model) as default:
        logits = model(x)
        torch.testing.assert_close(tap.take(logits), model.lstm(x)[0])
        assert default.take(logits).shape == (2, 4)


def test_a_layer_without_tensors_says_so():
    class Odd(nn.Module):
        def forward(self, x):
            return {"x": x}

    model = nn.Sequential(Odd())
    with FeatureTap(model, "0"), pytest.raises(TypeError, match="gave a dict"):
        model(torch.ones(1))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: FeatureTap(m, "blocks.O"), ValueError, "'blocks.0'"),
        (lambda m: FeatureTap(m, ["stem", "fcc"]), ValueError, "'fc'"),
        (lambda m: FeatureTap(m, nn.ReLU()), ValueError, "ReLU"),
        (lambda m: FeatureTap(m, []), ValueError, "empty"),
        (lambda m: FeatureTap(m, [3]), TypeError, "int"),
        (lambda m: FeatureTap(m, capture="both"), ValueError, "'input'"),
        (lambda m: FeatureTap(lambda x: x), TypeError, "function"),
        (lambda m: FeatureTap(nn.DataParallel(m)), TypeError, "DistributedDataParallel"),
    ],
)
def test_bad_arguments(make, error, words):
    model = Net()
    with pytest.raises(error) as caught:
        make(model)
    assert words in str(caught.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_missing_and_removed_captures_raise():
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model)
    with pytest.raises(RuntimeError, match=MISSING):
        criterion(torch.randn(6, CLASSES), y)
    logits = model(x)
    criterion(logits, y)
    with pytest.raises(RuntimeError, match=rf"{MISSING}.*'module' ran as a module"):
        criterion(logits.detach(), y)
    with pytest.raises(ValueError, match="6 rows, but target has 4"):
        criterion(logits, y[:4])
    criterion.tap.remove()
    with pytest.raises(RuntimeError, match="was removed"):
        criterion(logits, y)


def test_a_layer_left_out_of_a_forward_is_missing_not_stale():
    class Branch(Net):
        skip = False

        def forward(self, x):
            return torch.zeros(len(x), CLASSES) if self.skip else super().forward(x)

    model, (x, y) = Branch(), batch()
    criterion = FusedDiscLoss.attach(model)
    criterion(model(x), y)
    model.skip = True
    logits = model(x)
    with pytest.raises(RuntimeError, match=MISSING):
        criterion(logits, y)


def test_explicit_features_win_over_the_tap():
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model)
    logits, features = model(x), torch.rand(6, 4)
    criterion(logits, y, features)
    torch.testing.assert_close(criterion.terms.gini, disc_terms(features, y, CLASSES).gini)


def test_eval_and_no_grad():
    model, (x, y) = Net().eval(), batch()
    criterion = FusedDiscLoss.attach(model).eval()
    with_grad = criterion(model(x), y)
    with torch.no_grad():
        without = criterion(model(x), y)
    with torch.inference_mode():
        inference = criterion(model(x), y)
    assert with_grad == without == inference and not without.requires_grad


def test_the_model_is_unchanged_and_remove_restores_it():
    model, (x, y) = Net(), batch()
    keys = list(model.state_dict())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    criterion = FusedDiscLoss.attach(model)
    criterion(model(x), y)
    assert list(model.state_dict()) == keys
    assert not list(criterion.parameters()) and not criterion.state_dict()
    criterion.tap.remove()
    criterion.tap.remove()  # twice is fine
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


def test_checkpointing_of_the_tapped_layer_alone():
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model, "blocks")
    expected = criterion(model(x), y)
    gradients = torch.autograd.grad(expected, [*model.parameters()])
    model.use_reentrant = False
    logits = model(x)
    loss = criterion(logits, y)
    assert loss == expected
    torch.testing.assert_close(torch.autograd.grad(loss, [*model.parameters()]), gradients)
    # the recomputation in backward is not a capture
    with pytest.raises(RuntimeError, match=MISSING):
        criterion(logits.detach(), y)


def test_copies_of_a_criterion_are_not_attached():
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model)
    logits = model(x)
    for make in (copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))):
        twin = make(criterion)
        with pytest.raises(RuntimeError, match="is a copy"):
            twin(logits, y)
    criterion(logits, y)  # the original goes on
    twin = copy.deepcopy(criterion)
    assert twin.terms == criterion.terms


class InPlace(nn.Sequential):
    """An in-place ReLU overwrites the feature map, as at the end of residual networks."""

    def __init__(self):
        super().__init__(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6, 3))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("nothing_compiled")
def test_the_input_of_a_layer_that_works_in_place_is_what_came_before(compiled):
    model, x = InPlace(), torch.randn(4, 5)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    with FeatureTap(model, "1", capture="input") as tap:
        logits = run(x)
        features = tap.take(logits)
        torch.testing.assert_close(features, model[0](x))
        assert (features < 0).any()
        features.sum().backward()
    torch.testing.assert_close(model[0].bias.grad, torch.full((6,), 4.0))


@pytest.mark.usefixtures("nothing_compiled")
def test_compiled_code_keeps_features_from_being_overwritten():
    model, x = InPlace(), torch.randn(4, 5)
    with FeatureTap(model, "0") as tap:
        logits = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(tap.take(logits), model[0](x))


def test_features_that_were_overwritten_are_refused():
    model, x = InPlace(), torch.randn(4, 5)
    with FeatureTap(model, "0") as tap:
        logits = model(x)
        with pytest.raises(RuntimeError, match=r"overwritten.*inplace=False"):
            tap.take(logits)
        with torch.inference_mode():
            logits = model(x)  # inference tensors have no version counter, so they are copied
            torch.testing.assert_close(tap.take(logits), model[0](x))
    with FeatureTap(model, "1") as tap:
        logits = model(x)
        assert (tap.take(logits) >= 0).all()
