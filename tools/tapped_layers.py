"""The layers that a FeatureTap without `layers` taps in well-known image classifiers.

    python tools/tapped_layers.py > docs/tapped-layers.md

Every model is made with its default options and random weights, and run. The features are checked:
the logits must equal W f + b, with W and b of the model's classifier (not for models with more than
50 million parameters, which run without data).
"""

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from discfused import FeatureTap

TIMM = (
    "beit_base_patch16_224", "cait_xxs24_224", "convnext_atto", "crossvit_tiny_240", "cspresnet50",
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "densenet121", "dla34", "dpn68",
    "efficientformer_l1", "efficientnet_b0", "ghostnet_050", "hrnet_w18_small", "inception_v4",
    "levit_128s", "mixer_s32_224", "mobilenetv3_small_050", "nfnet_l0", "pit_ti_distilled_224",
    "regnetx_002", "repvit_m0_9", "resnet18", "resnetv2_50", "rexnet_100", "swiftformer_xs",
    "swin_tiny_patch4_window7_224", "vgg11", "vit_tiny_patch16_224", "xception41",
)  # fmt: skip
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
TRANSFORMERS = {
    "Beit": SMALL,
    "ConvNext": STAGES,
    "Data2VecVision": SMALL,
    "DeiT": SMALL,
    "Dinov2": SMALL,
    "EfficientNet": {},
    "MobileNetV1": {},
    "MobileNetV2": {},
    "MobileViT": {},
    "PvtV2": {},
    "ResNet": {"embedding_size": 8, **STAGES},
    "Swin": {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
             "window_size": 4},
    "ViT": SMALL,
    "ViTMSN": SMALL,
}  # fmt: skip
C = 7


class Row(NamedTuple):
    name: str
    tapped: str


def torchvision_model(name: str) -> nn.Module:
    from torchvision import models

    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return getattr(models, name)(weights=None, num_classes=C, **quick)


def timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=C, drop_rate=0.1)


def transformers_model(name: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=C, **TRANSFORMERS[name])
    return getattr(transformers, f"{name}ForImageClassification")(config)


def torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


FAMILIES: dict[str, tuple[Callable[[], Iterable[str]], Callable[[str], nn.Module]]] = {
    "torchvision": (torchvision_names, torchvision_model),
    "timm": (lambda: TIMM, timm_model),
    "transformers": (lambda: TRANSFORMERS, transformers_model),
}
LARGE = 50e6  # parameters


def image(model: nn.Module) -> torch.Tensor:
    size = 224
    if hasattr(model, "default_cfg"):
        size = model.default_cfg["input_size"][-1]
    elif hasattr(model, "config"):
        size = getattr(model.config, "image_size", size)
        size = size[0] if isinstance(size, (tuple, list)) else size
    elif type(model).__name__ == "Inception3":
        size = 299
    return torch.randn(2, 3, size, size)


def tapped(model: nn.Module) -> str:
    """In words; checks that the features are those of the logits."""
    model.train()
    x = image(model).to(next(model.parameters()).device)
    with FeatureTap(model) as tap, torch.no_grad():
        output = logits_of(model(x))
        try:
            tap.take(output)
        except ValueError as error:
            return "refused: " + str(error).partition("because ")[2].partition(": name")[0]
        model.eval()
        logits = logits_of(model(x))
        features = tap.take(logits)
        if not x.is_meta:
            check(model, features, logits)
        return f"{tap!r}".removeprefix("FeatureTap(").removesuffix(")").replace("'", "`")


def logits_of(output: object) -> torch.Tensor:
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, (tuple, list)) else output


def check(model: nn.Module, features: torch.Tensor, logits: torch.Tensor) -> None:
    """A linear layer of the model, or the mean of several, makes the logits of the features."""
    values = []
    for layer in model.modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or layer.weight.shape[0] != C:
            continue
        weight = layer.weight.flatten(1)
        if features.shape[-1] == weight.shape[1]:
            value = nn.functional.linear(features, weight, layer.bias)
            values += [value] if value.dim() == 2 else [value.relu().flatten(1, -2).mean(1)]
            values += [value.flatten(1, -2).mean(1)] if value.dim() > 2 else []
    values.append(sum(values) / len(values))
    if not any(torch.allclose(value, logits, rtol=1e-3, atol=1e-4) for value in values):
        raise AssertionError(f"{type(model).__name__}: the features do not give the logits")


def rows(family: str, every: int = 1) -> Iterator[Row]:
    names, make = FAMILIES[family]
    for name in [*names()][::every]:
        torch.manual_seed(0)
        model = make(name)
        if sum(p.numel() for p in model.parameters()) > LARGE:
            model.to("meta")
        yield Row(name, tapped(model))


def main() -> None:
    warnings.simplefilter("ignore")
    first, _, last = __doc__.strip().split("\n\n")
    print("# What is tapped\n")
    print(first, "`[2, 512]`: two samples of 512 features, `[2, 512, 13, 13]`: maps.", end=" ")
    print(f"Made by `python tools/tapped_layers.py`.\n\n{last}\n")
    print("| model | tapped |\n| --- | --- |")
    for family in FAMILIES:
        version = importlib.metadata.version(family)
        print(f"| **{family} {version}** | |")
        for row in rows(family):
            print(f"| {row.name} | {row.tapped} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
