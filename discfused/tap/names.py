"""Finds layers of a model by name, through wrappers of the model and of its parts."""

import difflib
from collections.abc import Sequence

from torch import nn

_TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module")  # of torch.compile and FSDP


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside all wrappers. The only child of a wrapper is the wrapped module."""
    while True:
        if isinstance(model, nn.DataParallel):
            raise TypeError(
                "model is a DataParallel, whose replicas each compute a part of the batch: use "
                "torch.nn.parallel.DistributedDataParallel"
            )
        children = dict(model.named_children())
        if len(children) != 1 or not children.keys() & {"module", *_TRANSPARENT}:
            return model
        (model,) = children.values()


def find(root: nn.Module, layers: Sequence[str | nn.Module]) -> list[tuple[str, nn.Module]]:
    """The name and the module of each."""
    if not layers:
        raise ValueError("layers is an empty list, expected at least one layer")
    found = [_find(root, layer) for layer in layers]
    names = {module: name for name, module in root.named_modules()}
    return [(_canonical(names[module]), module) for module in found]


def _find(root: nn.Module, layer: object) -> nn.Module:
    if isinstance(layer, nn.Module):
        layer = unwrap(layer)
        if not any(module is layer for module in root.modules()):
            raise ValueError(
                f"layers contains a {type(layer).__name__} that is not part of the model: pass one "
                "of model.modules(), or its name"
            )
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"layers contains a {type(layer).__name__}, expected names or modules of the model"
        )
    modules = {_canonical(name): module for name, module in root.named_modules()}
    name = _canonical(layer)
    while name not in modules and name.partition(".")[0] == "module":
        name = name.partition(".")[2]
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.3) or list(modules)[1:6]
        raise ValueError(
            f"layers contains {layer!r}, which is not in the model; near matches: "
            + ", ".join(map(repr, near))
        )
    return unwrap(modules[name])


def _canonical(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)
