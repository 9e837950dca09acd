"""How long captured features stay in memory."""

import gc
import weakref

import pytest
import torch

from discfused import FusedDiscLoss
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
