"""How long captured features stay in memory."""

import gc
import weakref

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from discfused import FusedDiscLoss
from discfused.tap import hooks, recorder
from discfused.tap.hooks import _OF_HOOKS, Around, Handles
from discfused.tap.recorder import _Eager
from models import Net, batch


def tensors_alive() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if torch.is_tensor(thing))


@pytest.mark.parametrize("layers", [None, "stem"])
@pytest.mark.parametrize("grad", [True, False])
def test_features_live_as_long_as_the_logits(layers, grad):
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model, layers)
    with torch.set_grad_enabled(grad):
        criterion(model(x), y)  # finds the classifier
        logits = model(x)
        held = weakref.ref(criterion.tap.take(logits))
        loss = criterion(logits, y)
        assert held() is not None
        del logits
        assert (held() is not None) == grad  # the graph of the loss
        del loss
        assert held() is None
        before = tensors_alive()
        model(x)  # nobody takes this one
        assert tensors_alive() <= before
        kept = [model(x) for _ in range(20)]  # as an evaluation does
        assert grad or tensors_alive() <= before + len(kept) + 2


@pytest.mark.parametrize("grad", [True, False])
def test_passes_before_the_first_loss_live_as_long_as_their_logits(grad):
    """As in an evaluation of the untrained model, or where plain cross-entropy comes first."""
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model)
    with torch.set_grad_enabled(grad):
        model(x)
        before = tensors_alive()
        for _ in range(5):
            model(x)
        assert tensors_alive() <= before
        views = [model(x).double() for _ in range(3)]
        for logits in views if grad else ():
            assert criterion(logits, y) == criterion(model(x).double(), y)
        views = logits = None
        model(x)
        assert tensors_alive() <= before


@pytest.mark.parametrize("layers", [None, "stem"])
def test_an_output_that_the_features_were_made_from_keeps_nothing(layers):
    """A model that also gives out its hidden states: no cycle through the graph's nodes."""

    class States(Net):
        def forward(self, x):
            stem = self.stem(x)
            features = self.blocks(stem).mean((2, 3))
            return {"logits": self.fc(features), "states": (x, stem, features)}

    model, (x, y) = States(), batch()
    criterion = FusedDiscLoss.attach(model, layers)
    for _ in range(3):
        output = model(x)
        criterion(output["logits"], y)
        held = weakref.ref(output["states"][1])
        del output
        assert held() is None


def test_200_steps_leak_nothing():
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model, ["stem", "blocks"])
    counts = []
    for step in range(200):
        try:
            loss = criterion(model(x), y[: 5 if step % 7 == 3 else 6])  # some raise in between
            loss.backward()
            del loss
        except ValueError:
            pass
        if step in (11, 198):
            counts.append(tensors_alive())
    assert counts[1] <= counts[0]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Handles, "add"), (Handles, "surround"), (hooks, "_ours"), (Around, "remove"),
        (_Eager, "enter"), (_Eager, "leave"), (recorder, "_push_mode"), (recorder, "_pop_mode"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a finalizer
def test_an_interrupt_leaves_nothing_and_breaks_nothing(owner, name, monkeypatch):
    """Ctrl-C while hooks are added or removed, and around the recording of a pass."""
    original, (x, y) = getattr(owner, name), batch()
    count, stop_at, stopped = 0, 0, True

    def stops(*args, **kwargs):
        nonlocal count, stopped
        result = original(*args, **kwargs)
        count += 1
        if count == stop_at:
            stopped = True
            raise KeyboardInterrupt
        return result

    while stopped:
        model, criterion = Net(), None
        count, stop_at, stopped = 0, stop_at + 1, False
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stops)
            try:
                criterion = FusedDiscLoss.attach(model)
                criterion(model(x), y)
            except KeyboardInterrupt:
                pass
        assert not _get_current_function_mode_stack()
        assert not _Eager.traces
        if criterion is not None:
            for _ in range(2):
                loss = criterion(model(x), y)
                assert loss == FusedDiscLoss()(model(x), y, criterion.tap.take(model(x)))
            assert not criterion.tap._recorder._hooks
        del criterion
        gc.collect()
        for module in model.modules():
            assert not any(vars(module)[kind] for kind in _OF_HOOKS)
            assert not vars(module).keys() & {"__getstate__", "_compiled_call_impl"}
    assert stop_at > 1
