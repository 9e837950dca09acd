"""The networks of the paper: images [N, 3, H, W] -> logits [N, C].

Each network ends in an nn.Linear, whose input FeatureTap captures by default. Dropout is part of
this layer, so the features are captured before it, as in the paper. `width` scales all layers, for
tests and for machines without a GPU.

resnet17: the abstract of the paper does not define it. Ours is ResNet-18 whose last residual block
has one convolution instead of two, so it has 17 layers (convolutions outside of shortcuts, and the
linear layer).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from discfused.recipes._torchvision import models
from discfused.recipes.options import Model

SMALL_IMAGE = 32  # pixels: up to this size the stem has no pooling
LAYERS = {"resnet17": [2, 2, 2, 2], "resnet18": [2, 2, 2, 2], "resnet50": [3, 4, 6, 3]}


def build(options: Model, num_classes: int, image_size: int) -> nn.Module:
    """A new network, initialised with torch's global random generator."""
    small = options.stem == "small" or (options.stem == "auto" and image_size <= SMALL_IMAGE)
    if options.pretrained and (small or options.width != 1 or options.name == "resnet17"):
        raise ValueError(
            f"model.pretrained is true, but there are no weights for {options.name} of width "
            f"{options.width} with the {'small' if small else 'large'} stem: expected resnet18, "
            "resnet50 or cvt13 of width 1 with the large stem"
        )
    if options.name == "cvt13":
        return _cvt13(options, num_classes, small)
    return _resnet(options, num_classes, small)


def _resnet(options: Model, num_classes: int, small: bool) -> nn.Module:
    if options.pretrained:
        model = getattr(models, options.name)(weights="DEFAULT")
        model.fc = nn.Linear(model.fc.in_features, num_classes)
    elif options.width == 1:
        model = models.ResNet(_block(options.name), LAYERS[options.name], num_classes)
    else:
        model = _Narrow(_block(options.name), LAYERS[options.name], num_classes, options.width)
    if small:
        channels = model.conv1.out_channels
        model.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if options.dropout:
        model.fc = _DropoutLinear(model.fc.in_features, num_classes)
        model.fc.dropout = options.dropout
    last = model.layer4[-1]
    if options.name == "resnet17":
        model.layer4[-1] = last = _OneConvolution(last)
    # The last ReLU must not overwrite its input, which can be tapped.
    last.relu.inplace = False
    return model


def _block(name: str) -> Any:
    return models.resnet.Bottleneck if name == "resnet50" else models.resnet.BasicBlock


class _Narrow(models.ResNet):
    """torchvision's ResNet with fewer channels in all layers."""

    def __init__(self, block: Any, layers: list[int], num_classes: int, width: float):
        self.share = width
        super().__init__(block, layers, num_classes)
        stem = self._channels(64)
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(stem)
        self.fc = nn.Linear(self._channels(512) * block.expansion, num_classes)

    def _channels(self, original: int) -> int:
        return max(1, round(original * self.share))

    def _make_layer(self, block: Any, planes: int, *args: Any, **keywords: Any) -> nn.Sequential:
        if planes == 64:  # the first
            self.inplanes = self._channels(64)
        return super()._make_layer(block, self._channels(planes), *args, **keywords)


class _DropoutLinear(nn.Linear):
    """A linear layer with dropout of its input."""

    dropout: float

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, self.dropout, self.training))


class _OneConvolution(nn.Module):
    """relu(x + bn(conv(x))): a BasicBlock without its second convolution."""

    def __init__(self, block: Any):
        super().__init__()
        self.conv1, self.bn1, self.relu = block.conv1, block.bn1, block.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn1(self.conv1(x)))


def _cvt13(options: Model, num_classes: int, small: bool) -> nn.Module:
    from transformers import CvtConfig, CvtForImageClassification

    class Cvt(CvtForImageClassification):
        """CvT-13 that returns only its logits."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).logits

    if options.pretrained:
        return Cvt.from_pretrained(
            "microsoft/cvt-13", num_labels=num_classes, ignore_mismatched_sizes=True
        ).train()
    heads = [1, 3, 6]
    channels = max(1, round(64 * options.width))  # of one head
    config = CvtConfig(num_labels=num_classes, embed_dim=[channels * n for n in heads])  # type: ignore[call-arg]
    assert list(config.num_heads) == heads
    if small:
        config.patch_sizes, config.patch_stride, config.patch_padding = [3] * 3, [2] * 3, [1] * 3
    return Cvt(config)
