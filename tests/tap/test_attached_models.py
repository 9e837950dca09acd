"""Attached models can be copied, saved, quantized, fused and exported as without a tap."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.optim.swa_utils import AveragedModel

from discfused import FeatureTap, FusedDiscLoss, fused_disc_loss
from models import Net, batch

LAYERS = [None, "blocks.0", ["stem", "fc"]]
WHEN = ["before a forward", "after one"]


def hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("__getstate__" in vars(m))
        for m in model.modules()
    )


@pytest.fixture(params=LAYERS, ids=str)
def layers(request):
    return request.param


@pytest.fixture(params=WHEN)
def attached(request, layers):
    torch.manual_seed(0)
    model, (x, y) = Net().eval(), batch()
    criterion = FusedDiscLoss.attach(model, layers)
    if request.param == "after one":
        criterion(model(x), y)
    return model, criterion


def test_dropped_criteria_leave_nothing(layers):
    model, (x, y) = Net(), batch()
    for run in range(10):
        criterion = FusedDiscLoss.attach(model, layers)
        if run % 2:
            criterion(model(x), y).backward()
    assert hooks(model)
    del criterion
    gc.collect()
    assert hooks(model) == 0
    model.criterion = FusedDiscLoss.attach(model, layers)  # part of what it taps
    del model.criterion
    gc.collect()
    assert hooks(model) == 0


def test_a_model_that_keeps_its_criterion_is_freed(layers):
    def tensors_alive():
        gc.collect()
        return sum(1 for thing in gc.get_objects() if isinstance(thing, nn.Conv2d))

    before = tensors_alive()
    for _ in range(3):
        model, (x, y) = Net(), batch()
        model.criterion = FusedDiscLoss.attach(model, layers)
        model.criterion(model(x), y)
        del model
    assert tensors_alive() == before


@pytest.mark.parametrize("make", [copy.deepcopy, AveragedModel, copy.copy])
def test_copies_have_no_hooks(attached, make):
    model, criterion = attached
    count, (x, y) = hooks(model), batch()
    twin = make(model)
    if make is not copy.copy:  # its layers are those of the original
        assert hooks(twin) == 0
    assert vars(twin).get("_forward_hooks") == {}
    assert hooks(model) == count
    torch.testing.assert_close(twin(x), model(x))
    assert criterion(model(x), y).isfinite()


def test_hooks_of_others_are_copied(attached):
    model, _ = attached
    model.stem.register_forward_hook(_double)
    model.stem.register_forward_pre_hook(_nothing, with_kwargs=True)
    x, _ = batch()
    twin = copy.deepcopy(model)
    assert hooks(twin) == 2
    torch.testing.assert_close(twin(x), model(x))


def _double(module, args, output):
    return 2 * output


def _nothing(module, args, kwargs):
    return None


LOAD = """
import sys
sys.modules["discfused"] = None
import torch
from torch import nn
import models
torch.serialization.add_safe_globals(
    [models.Net, nn.Conv2d, nn.Sequential, nn.ReLU, nn.Dropout, nn.Linear])
model = torch.load(sys.argv[1], weights_only=sys.argv[2] == "True")
x, expected = torch.load(sys.argv[3])
torch.testing.assert_close(model(x), expected)
"""


@pytest.mark.parametrize("weights_only", [True, False])
def test_saved_whole_it_loads_where_discfused_is_not(weights_only, python, tmp_path, request):
    model, (x, y) = Net().eval(), batch()
    plain = io.BytesIO()
    torch.save(model, plain)
    criteria = [FusedDiscLoss.attach(model, layers) for layers in LAYERS]
    for criterion in criteria:
        criterion(model(x), y)
    attached = io.BytesIO()
    torch.save(model, attached)
    assert len(attached.getvalue()) == len(plain.getvalue())
    (tmp_path / "model.pt").write_bytes(attached.getvalue())
    torch.save((x, model(x).detach()), tmp_path / "values.pt")
    files = str(tmp_path / "model.pt"), str(weights_only), str(tmp_path / "values.pt")
    code = f"import sys; sys.path.insert(0, {str(request.path.parents[1])!r})" + LOAD
    python(code, *files)
    assert criteria[0](model(x), y).isfinite()


def test_a_class_with_a_state_of_its_own(layers):
    class Own(Net):
        def __getstate__(self):
            return {**self.__dict__, "mark": 7}

    model = Own()
    tap = FeatureTap(model, layers)
    twin = copy.deepcopy(model)
    assert twin.mark == 7 and hooks(twin) == 0
    tap.remove()
    assert hooks(model) == 0 and model.__getstate__()["mark"] == 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inplace", [False, True])
def test_dynamic_quantization(attached, inplace):
    model, criterion = attached
    x, y = batch()
    plain = quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    expected = plain(x)
    quantized = quantization.quantize_dynamic(model, {nn.Linear}, inplace=inplace)
    assert torch.equal(quantized(x), expected)
    if not inplace:
        assert criterion(model(x), y).isfinite()  # the original is tapped as before
    pickle.dumps([m._forward_hooks for m in quantized.modules()])
    criterion.tap.remove()
    assert torch.equal(quantized(x), expected)


class Fusible(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layers", [None, "conv", ["relu", "fc"]], ids=str)
def test_fusion_and_quantization_aware_training(layers, inplace):
    torch.manual_seed(0)
    (x, y), plain = batch(), Fusible().eval()
    model = copy.deepcopy(plain)
    criterion = FusedDiscLoss.attach(model, layers)
    criterion(model(x), y)
    names = ["conv", "bn", "relu"]
    fused = quantization.fuse_modules(model, names, inplace=inplace)
    expected = quantization.fuse_modules(plain, names)
    assert torch.equal(fused(x), expected(x))
    model = model.train() if inplace else Fusible()
    criterion = FusedDiscLoss.attach(model, "fc", capture="input")
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    trained = quantization.prepare_qat(model.train(), inplace=inplace)
    criterion.gini_weight = 1.0
    loss = criterion(trained(x), y) if inplace else criterion(model(x), y)
    loss.backward()
    criterion.tap.remove()
    assert trained(x).isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_needs_the_tap_removed():
    """As the docstring says."""
    model, (x, _) = Net().eval(), batch()
    tap = FeatureTap(model, "stem")
    with pytest.raises(AttributeError, match="Hook"):
        torch.jit.script(nn.Sequential(model.stem))
    tap.remove()
    assert torch.equal(torch.jit.script(nn.Sequential(model.stem))(x), model.stem(x))


def test_export_leaves_nothing_behind(attached):
    model, criterion = attached
    x, y = batch()
    logits = model(x)
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), logits)
    assert criterion(logits, y) == criterion(model(x), y)


@pytest.mark.filterwarnings("ignore")  # PyTorch's: an input of a layer requires no grad
@pytest.mark.parametrize("layer", ["", "module", "fc"])
def test_layers_with_backward_hooks(layer):
    """PyTorch hands them views of their inputs."""
    model, (x, y) = Net(), batch()
    model.get_submodule(layer).register_full_backward_hook(lambda *arguments: None)
    criterion = FusedDiscLoss.attach(model)
    features = model.blocks(model.stem(x)).mean((2, 3))
    expected = fused_disc_loss(model.fc(features), y, features)
    for _ in range(2):
        torch.testing.assert_close(criterion(model(x), y), expected)
    assert criterion.tap.names == ["input of module"]
