"""The networks of the recipes: layers, sizes, stems and pretrained weights."""

from recipe_cases import MODELS

# isort: split
import pytest
import torch
from torch import nn
from transformers import CvtForImageClassification

from discfused import FeatureTap
from discfused.recipes import models
from discfused.recipes._torchvision import models as torchvision_models
from discfused.recipes.options import Model


def build(name, width=0.125, stem="auto", size=32, pretrained=False, dropout=0.0):
    return models.build(Model(name, width, stem, dropout, pretrained), 5, size)


@pytest.mark.parametrize(("name", "layers"), [("resnet17", 17), ("resnet18", 18), ("resnet50", 50)])
def test_a_resnet_has_as_many_layers_as_its_name_says(name, layers):
    counted = [
        module for path, module in build(name).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in path
    ]  # fmt: skip
    assert len(counted) == layers


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [8, 32, 64])
def test_every_network_takes_every_size_and_ends_in_a_linear_layer(name, size):
    model = build(name, size=size)
    with FeatureTap(model) as tap:
        logits = model(torch.rand(2, 3, size, size))
        features = tap.take(logits)
    assert logits.shape == (2, 5) and features.dim() == 2
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(head(features), logits)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_original_of_full_width_is_torchvisions(name):
    original = getattr(torchvision_models, name)(num_classes=5)
    for stem in ("large", "small"):
        model = build(name, width=1.0, stem=stem)
        shapes, expected = ({key: value.shape for key, value in of.state_dict().items()}
                            for of in (model, original))  # fmt: skip
        if stem == "small":
            assert shapes.pop("conv1.weight") == (64, 3, 3, 3)
            del expected["conv1.weight"]
        assert shapes == expected


def test_cvt13_is_that_of_transformers():
    model = build("cvt13", width=1.0, stem="large")
    original = CvtForImageClassification(model.config)
    assert [*model.config.embed_dim] == [64, 192, 384] and [*model.config.depth] == [1, 2, 10]
    original.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(images), original.eval()(images).logits)


@pytest.mark.parametrize("name", ["resnet17", "resnet18", "resnet50"])
def test_small_images_keep_their_pixels_up_to_the_first_block(name):
    def pixels(stem, size):
        model = build(name, stem=stem, size=size)
        with FeatureTap(model, "layer1", capture="input") as tap:
            logits = model(torch.rand(1, 3, size, size))
            return tap.take(logits).shape[-1]

    assert [pixels("auto", 32), pixels("auto", 64), pixels("small", 64)] == [32, 16, 64]


@pytest.mark.parametrize("name", ["resnet17", "resnet18", "resnet50"])
def test_what_enters_the_last_relu_can_be_tapped(name):
    model = build(name)
    layer = "layer4.2.relu" if name == "resnet50" else "layer4.1.relu"
    with FeatureTap(model, [layer, "layer4"], capture="input") as tap:
        logits = model(torch.randn(4, 3, 32, 32))
        before = tap.take(logits)[0]
    assert (before < 0).any()  # an activation in place would have overwritten it


@pytest.mark.parametrize("name", ["resnet17", "resnet18", "resnet50"])
def test_dropout_comes_after_what_is_tapped(name):
    model, original = build(name, dropout=0.4), build(name)
    assert [*model.state_dict()] == [*original.state_dict()]
    images = torch.rand(8, 3, 32, 32)
    with FeatureTap(model) as tap, FeatureTap(model, "avgpool") as pooled:
        logits = model(images)
        features = tap.take(logits)
        torch.testing.assert_close(features, pooled.take(logits).flatten(1))
    assert not torch.allclose(logits, model.fc.weight.mm(features.T).T + model.fc.bias)
    original.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(images), original.eval()(images))


@pytest.mark.parametrize(
    "case", [("resnet17", 1.0, "large"), ("resnet18", 0.5, "large"), ("cvt13", 1.0, "small")]
)
def test_weights_that_nobody_offers_are_an_error(case):
    with pytest.raises(ValueError, match=r"there are no weights for .* expected resnet18"):
        build(*case, pretrained=True)
