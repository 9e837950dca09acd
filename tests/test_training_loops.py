"""Training loops with an attached criterion: the gradients equal those of features passed by hand,
in float64."""

import contextlib
import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from cases import RELEASE
from discfused import FusedDiscLoss, disc_terms, fused_disc_loss
from models import CLASSES, Net, batch, gradients
from test_compile import OLD


def by_hand(model, x, y, **options):
    features = model.blocks(model.stem(x)).mean((2, 3))  # the input of fc
    return fused_disc_loss(model.fc(features), y, features, **options)


@pytest.fixture(params=[False, True], ids=["first pass", "later pass"])
def attached(request):
    model, (x, y) = Net().double(), batch(8)
    x = x.double()
    criterion = FusedDiscLoss.attach(model)
    if request.param:  # the first pass with a loss finds the classifier
        criterion(model(x), y)
    return model, criterion, x, y


# ---------------------------------------------------------------- activation checkpointing


def _parts(model, criterion, x, y):
    model.use_reentrant = False
    return criterion(model(x), y)


CHECKPOINTED = {
    "blocks": _parts,
    "model": lambda m, c, x, y: c(checkpoint(m, x, use_reentrant=False), y),
    "model and criterion": lambda m, c, x, y: checkpoint(
        lambda x, y: c(m(x), y), x, y, use_reentrant=False
    ),
}


@pytest.mark.parametrize("what", CHECKPOINTED)
def test_checkpointing(attached, what):
    model, criterion, x, y = attached
    expected = gradients(by_hand(model, x, y), model)
    for _ in range(2):  # the recomputation in backward is not a new pass
        loss = CHECKPOINTED[what](model, criterion, x, y)
        torch.testing.assert_close(gradients(loss, model), expected)


def test_reentrant_checkpointing(attached):
    """Checkpointing of the model: a warning says that features have no graph. Of model and loss:
    they have one."""
    model, criterion, x, y = attached
    expected = gradients(by_hand(model, x, y), model)
    x.requires_grad_()
    with pytest.warns(UserWarning, match=r"do not require grad.*use_reentrant=True"):
        criterion(checkpoint(model, x, use_reentrant=True), y)
    both = checkpoint(lambda x, y: criterion(model(x), y), x, y, use_reentrant=True)
    both.backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))


# ---------------------------------------------------------------- torch.func


def test_gradients_by_torch_func(attached):
    model, criterion, x, y = attached
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, gradients(by_hand(model, x, y), model), strict=True))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters):
        return criterion(functional_call(model, parameters, (x,)), y)

    torch.testing.assert_close(grad(loss)(parameters), expected)
    torch.testing.assert_close(
        gradients(loss(dict(model.named_parameters())), model), tuple(expected.values())
    )


def test_terms_of_a_transform_do_not_outlive_it():
    criterion, x, logits, y = (
        FusedDiscLoss(),
        torch.rand(6, 4),
        torch.randn(6, 3),
        torch.arange(6) % 3,
    )
    criterion(logits, y, x)
    assert criterion.terms is not None
    grad(lambda x: criterion(logits, y, x))(x)
    assert criterion.terms is None


def test_an_ensemble_by_vmap(attached):
    model, criterion, x, y = attached
    models = [model, *(Net().double() for _ in range(2))]
    parameters, _ = stack_module_state(models)
    found = vmap(grad(lambda p: criterion(functional_call(model, p, (x,)), y)))(parameters)
    for index, each in enumerate(models):
        got = [stacked[index] for stacked in found.values()]
        torch.testing.assert_close(got, list(gradients(by_hand(each, x, y), each)))
    criterion(model(x), y)
    with torch.no_grad():  # without a graph, logits are known by their memory, and these have none
        losses = vmap(lambda p: criterion(functional_call(model, p, (x,)), y))(parameters)
        torch.testing.assert_close(losses, torch.stack([by_hand(each, x, y) for each in models]))


# ---------------------------------------------------------------- several models, losses,
# optimizers


def test_several_criteria_on_one_model(attached):
    model, first, x, y = attached
    second = FusedDiscLoss.attach(model, ["stem", "blocks"], gini_weight=3.0, prior="uniform")
    logits = model(x)
    expected = by_hand(model, x, y) + fused_disc_loss(
        model(x), y, [model.stem(x), model.blocks(model.stem(x))], gini_weight=3.0, prior="uniform"
    )
    both = gradients(first(logits, y) + second(logits, y), model)
    torch.testing.assert_close(both, gradients(expected, model))
    second.tap.remove()
    alone = gradients(first(model(x), y), model)
    torch.testing.assert_close(alone, gradients(by_hand(model, x, y), model))


def test_several_optimizers(attached):
    """Alternating optimizers for the trunk and the head."""
    model, criterion, x, y = attached
    twin = copy.deepcopy(model)

    def train(model, loss):
        parts = nn.ModuleList([model.stem, model.blocks]), model.fc
        trunk, head = (torch.optim.Adam(part.parameters(), lr=0.01) for part in parts)
        for step in range(6):
            optimizer = head if step % 3 == 2 else trunk
            model.zero_grad()
            loss(model).backward()
            optimizer.step()

    train(model, lambda model: criterion(model(x), y))
    train(twin, lambda model: by_hand(model, x, y))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frozen", ["stem", "blocks", "fc"])
def test_frozen_layers(attached, frozen):
    """No warning if any layer before the features is trainable."""
    model, criterion, x, y = attached
    getattr(model, frozen).requires_grad_(False)
    expected = gradients(by_hand(model, x, y), model)
    torch.testing.assert_close(gradients(criterion(model(x), y), model), expected)


def test_an_average_of_the_weights_is_not_tapped(attached):
    """A copy of the model runs between its forward pass and its loss, as a teacher does. Also a
    copy of a trained, tapped model."""
    model, criterion, x, y = attached
    expected = by_hand(model, x, y)
    teacher = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(3):
        logits = model(x)
        with torch.no_grad():
            guess = teacher(x + 1)
        torch.testing.assert_close(criterion(logits, y), expected)
        with pytest.raises(RuntimeError, match="no features were captured"):
            criterion(guess, y)
        teacher.update_parameters(model)


# ---------------------------------------------------------------- graphs


class Step(nn.Module):
    def __init__(self, backend, **options):
        super().__init__()
        self.net, self.options = Net().double(), {"backend": backend, **options}

    def forward(self, x, y):
        return by_hand(self.net, x, y, **self.options)


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_model_and_loss(backend, strict):
    """One differentiable graph for all batch sizes, which can be saved to a file."""
    step, (x, y) = Step(backend, gini_weight=3.0), batch(8)
    # Older releases make a separate graph for N <= C, where backends have fewer slots.
    n = torch.export.Dim("n", min=6 if RELEASE < (2, 7) else 2)
    shapes = {"x": {0: n}, "y": {0: n}}
    program = torch.export.export(step, (x.double(), y), dynamic_shapes=shapes, strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count(f"discfused.{backend}_terms.default") == (backend != "reference")
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for size in (8, n.min + 1, 20):
        x, y = torch.randn(size, 3, 8, 8).double(), torch.arange(size) % 4
        loss, expected = exported(x, y), step(x, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(loss, exported), gradients(expected, step))


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("how", ["no grad", "inference", "frozen"])
@pytest.mark.parametrize("part", ["model", "blocks"])
def test_features_of_compiled_code_without_a_graph(how, part):
    """They are the features of the last pass, not of an earlier one or of another model."""
    model, (x, y) = Net().requires_grad_(how != "frozen"), batch()
    plain, compiled = copy.deepcopy(model), {"backend": "aot_eager", "fullgraph": True}
    fast = torch.compile(model, **compiled) if part == "model" else model
    if part == "blocks":
        model.blocks.compile(**compiled)
    criterion = FusedDiscLoss.attach(fast, "blocks")
    modes = {"no grad": torch.no_grad, "inference": torch.inference_mode}
    with modes.get(how, contextlib.nullcontext)():
        gini = disc_terms(plain.blocks(plain.stem(x)), y % 4, CLASSES).gini
        for view in (slice(None), slice(0, 4)):
            logits = fast(x)
            criterion(logits[:, view], y % 4)
            torch.testing.assert_close(criterion.terms.gini, gini)
        for _ in range(2):
            earlier = fast(x + 1)
            fast(x)
            for logits in (earlier, Net().requires_grad_(False)(x)):
                with pytest.raises(RuntimeError, match="no features were captured"):
                    criterion(logits, y)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("what", ["model", "model and criterion"])
def test_one_graph_for_any_batch_size(backend, what):
    model, counter = Net().double(), CompileCounterWithBackend("aot_eager")
    compiled = functools.partial(torch.compile, backend=counter, fullgraph=True)
    run = compiled(model) if what == "model" else model
    criterion = FusedDiscLoss.attach(run, backend=backend)

    def step(x, y):
        return criterion(run(x), y)

    x, y = batch(16)
    step(x.double(), y)  # finds the classifier, and is not compiled
    step = compiled(step) if what == "model and criterion" else step
    for size in (16, 12, 5, 4, 20, 7):
        x, y = torch.randn(size, 3, 8, 8).double(), torch.arange(size) % 4
        expected = by_hand(model, x, y, backend=backend)
        loss = step(x, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(loss, model), gradients(expected, model))
    assert counter.frame_count <= 2 + OLD  # of one batch size, and of any
    assert criterion.tap._passes.compiled == [None]
