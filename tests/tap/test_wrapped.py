"""Taps on models in wrappers: torch.compile, DistributedDataParallel, FSDP and others."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim.swa_utils import AveragedModel

from cases import RELEASE
from discfused import FeatureTap, FusedDiscLoss, fused_disc_loss
from models import Net, batch, gradients

# Code compiled for a model without a tap would be reused for a tapped model of its class.
pytestmark = pytest.mark.usefixtures("nothing_compiled")


@pytest.mark.parametrize("wrap", ["plain", "compiled", "ddp", "compiled ddp", "compiled part"])
def test_names_resolve_through_wrappers(wrap, process_group):
    model = Net()
    wrapped = model
    if "ddp" in wrap:
        wrapped = nn.parallel.DistributedDataParallel(wrapped)
    if "compiled" in wrap:
        wrapped = torch.compile(wrapped, backend="eager")
    if "part" in wrap:
        model.blocks = torch.compile(model.blocks, backend="eager")
    names = ["blocks.0", "module.blocks.0", "_orig_mod.module.blocks.0", "_orig_mod.blocks.0"]
    for name in [*names, "module", "module.module", "blocks._orig_mod.0"]:
        FeatureTap(wrapped, name).remove()
    (x, _), expected = batch(), dict(model.named_modules())
    with FeatureTap(wrapped, "_orig_mod.blocks") as tap:
        logits = wrapped(x)
        assert tap.take(logits).shape[1] == 12
    assert dict(model.named_modules()) == expected


def test_a_model_that_is_compiled_in_place():
    """model.compile() waits until a pass that is not compiled has shown the classifier."""
    model, (x, y) = Net(), batch()
    expected = FusedDiscLoss.attach(model)(model(x), y)
    counter = CompileCounter()
    model.compile(backend=counter)
    criterion = FusedDiscLoss.attach(model)
    assert criterion(model(x), y) == expected and counter.frame_count == 0
    for _ in range(3):
        torch.testing.assert_close(criterion(model(x), y), expected)
    assert counter.frame_count == 1
    fast = model._compiled_call_impl
    FusedDiscLoss.attach(model).tap.remove()
    assert model._compiled_call_impl is fast


@pytest.mark.parametrize("compiled", ["", "2"])
@pytest.mark.parametrize("layers", [None, "1"])
def test_modules_that_torch_compile_skips(compiled, layers):
    """Of an nn.Sequential, and of a layer alone, the hooks are compiled by themselves."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    model.get_submodule(compiled).compile(backend="aot_eager")
    criterion, y = FusedDiscLoss.attach(model, layers), torch.arange(6) % 5
    for _ in range(3):
        x = torch.randn(6, 8)
        features = model[0](x).relu()
        logits = nn.functional.linear(features, model[2].weight, model[2].bias)
        expected = fused_disc_loss(logits, y, features)
        torch.testing.assert_close(criterion(model(x), y), expected)


class Engine(nn.Module):
    """A wrapper like that of DeepSpeed, or, with another name, of FSDP."""

    def __init__(self, model: nn.Module, name: str = "module"):
        super().__init__()
        self.add_module(name, model)

    def forward(self, *args):
        (model,) = self.children()
        return model(*args)


def sharded(model: nn.Module) -> nn.Module:
    """Wraps the model and a part of it, with the names of FSDP."""
    model.blocks = Engine(model.blocks, "_fsdp_wrapped_module")
    return Engine(model, "_fsdp_wrapped_module")


@pytest.mark.parametrize("wrap", [AveragedModel, Engine, lambda m: Engine(sharded(m)), sharded])
def test_any_wrapper_is_seen_through(wrap):
    wrapped, (x, y) = wrap(Net()), batch()
    for name in ["blocks.0", "module.blocks.0", "module.module.blocks.0"]:
        FeatureTap(wrapped, name).remove()
    criterion = FusedDiscLoss.attach(wrapped)
    assert criterion(wrapped(x), y).isfinite()


def test_the_wrapped_layer_by_its_name_in_the_wrapper():
    wrapped, x = Engine(nn.Linear(3, 2)), torch.randn(4, 3)
    with FeatureTap(wrapped, "module", capture="input") as tap:
        logits = wrapped(x)
        assert torch.equal(tap.take(logits), x)


def test_a_compiled_criterion_beside_an_eager_model():
    model, (x, y) = Net(), batch()
    criterion = FusedDiscLoss.attach(model)
    expected = criterion(model(x), y)
    compiled = torch.compile(criterion, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(model(x), y), expected)


@pytest.mark.parametrize("wrap", ["ddp", "compiled ddp", "ddp of compiled"])
@pytest.mark.parametrize("when", ["attached to the model", "attached to the wrapper"])
def test_a_wrapped_model_trains_as_the_plain_one(wrap, when, process_group):
    model, (x, y) = Net(), batch()
    plain = FusedDiscLoss.attach(model)
    expected = plain(model(x), y)
    wanted = gradients(expected, model)
    plain.tap.remove()

    wrapped = model
    for word in reversed(wrap.replace("of ", "").split()):
        if word == "ddp":
            wrapped = nn.parallel.DistributedDataParallel(wrapped)
        else:
            wrapped = torch.compile(wrapped, backend="eager")
    keys = list(wrapped.state_dict())
    criterion = FusedDiscLoss.attach(wrapped if "wrapper" in when else model)
    if "wrapper" not in when:  # the first pass must not be compiled
        criterion(model(x), y)
    for _ in range(2):
        wrapped.zero_grad()
        loss = criterion(wrapped(x), y)
        loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close([p.grad for p in model.parameters()], list(wanted))
    assert list(wrapped.state_dict()) == keys


@pytest.mark.skipif(RELEASE < (2, 7), reason="FSDP2 there needs a GPU")
def test_a_classifier_that_fsdp_shards_alone(process_group):
    """FSDP2 gives it views of its inputs (x.view_as(x)): the features are still those before
    dropout."""
    from torch.distributed.fsdp import fully_shard

    model, (x, y) = Net(), batch()
    model.module.p = 0.9
    fully_shard(model.fc)
    criterion = FusedDiscLoss.attach(fully_shard(model))
    criterion(model(x), y)
    assert criterion.tap.names == ["input of module"]
