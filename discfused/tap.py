"""FeatureTap: look at what a layer puts out, without touching the model's code."""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from discfused import _inputs

CAPTURES = ("output", "input")
_TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module")  # in the wrappers of torch.compile and FSDP


class FeatureTap:
    """Captures the output (or input) of one or several layers in every forward of a model.

        with FeatureTap(model, "layer4") as tap:
            logits = model(images)
            features = tap.take()

    Args:
        model: any module. Wrappers whose only child is `module` (DistributedDataParallel,
            AveragedModel, DeepSpeed), and those of torch.compile and FSDP, are seen through. Call
            the model itself: layers that run outside `model(...)` are not captured.
        layers: a name as in `model.named_modules()`, a module of the model, or a list of them; the
            prefixes `module.` and `_orig_mod.` may be there or not. Default: the last `nn.Linear`
            in the order of registration, whose *input* is captured.
        capture: "output" or "input" of the layers. Of a tuple the first tensor is taken. A module
            that runs several times in one forward gives its last run. The input of a layer that
            works in place (ReLU(inplace=True)) is copied.

    The model's parameters, buffers and state_dict do not change. Several taps on one model do not
    know of each other. Copies of the model (averaged weights, pickles) are not tapped.

    Code that torch.compile made before cannot see the tap: making or removing one makes PyTorch
    compile anew (torch.compiler.reset) whatever was compiled so far in this process.

    Raises:
        ValueError, TypeError: no such layer (near matches are listed), no nn.Linear to tap, a model
            in DataParallel (use DistributedDataParallel).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
        *,
        capture: str = "output",
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
        _inputs.one_of("capture", capture, CAPTURES)
        root = _unwrap(model)
        if layers is None:
            capture, tapped = "input", [_last_linear(root)]
        else:
            self_contained = isinstance(layers, (str, nn.Module))
            tapped = [_find(root, layer) for layer in ([layers] if self_contained else layers)]
            if not tapped:
                raise ValueError("layers is an empty list, expected at least one layer")
        self._single = layers is None or self_contained
        self._captured: list[Tensor | None] = [None] * len(tapped)
        self._versions: list[int | None] = [None] * len(tapped)
        self._running = False  # inside a forward of the model
        self._removed = ""  # why, once it is
        # The first and the last hook of the root enclose the others, should the root be tapped.
        self._handles = [root.register_forward_pre_hook(_Probe(self).start)]
        for index, layer in enumerate(tapped):
            probe = _Probe(self, index)
            register = (
                layer.register_forward_hook
                if capture == "output"
                else layer.register_forward_pre_hook
            )
            hook = probe.output if capture == "output" else probe.input
            self._handles.append(register(hook, with_kwargs=True))
        stop = root.register_forward_hook(_Probe(self).stop, always_call=True)
        self._handles.append(stop)
        _forget_compiled_code()

    def take(self) -> Tensor | list[Tensor]:
        """What the last forward of the model put out; a list if `layers` was one.

        It can be taken once, and is gone with the next forward: what was computed for one batch
        never meets the labels of another.

        Raises:
            RuntimeError: there is nothing to take, with what to do.
        """
        if self._removed:
            raise RuntimeError(f"this FeatureTap {self._removed}: attach a new one to the model")
        captured, versions = self._captured, self._versions
        self._forget()
        if any(tensor is None for tensor in captured):
            raise RuntimeError(
                "no features were captured since they were last taken: call the model "
                "(model(x), not model.forward(x) or parts of it) once before each call of the "
                "criterion, and see that the tapped layers run in it; or pass features yourself"
            )
        if any(map(_overwritten, captured, versions)):
            raise RuntimeError(
                "tapped features were overwritten after they were captured, as by a "
                "torch.nn.ReLU(inplace=True): set inplace=False there, or tap that layer instead"
            )
        return captured[0] if self._single else captured

    def remove(self) -> None:
        """Takes the hooks off: the model is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._detach("was removed")
        _forget_compiled_code()

    def _forget(self) -> None:
        self._captured = [None] * len(self._captured)
        self._versions = [None] * len(self._captured)

    def _detach(self, why: str) -> None:
        self._handles = []
        self._forget()
        self._running = False
        self._removed = why

    def __enter__(self) -> "FeatureTap":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict) -> "FeatureTap":
        copy = FeatureTap.__new__(FeatureTap)
        copy.__setstate__(self.__getstate__())
        return copy

    def __getstate__(self) -> dict:
        return {"_single": self._single, "_captured": [None] * len(self._captured)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._detach("is a copy, and hooks stay with the original")


class _Probe:
    """The hooks of a tap. A copy, made when its model is copied or pickled, does nothing."""

    def __init__(self, tap: FeatureTap | None = None, index: int = 0):
        self.tap = tap
        self.index = index

    def start(self, module: nn.Module, args: tuple) -> None:
        if self.tap is not None:
            self.tap._forget()
            self.tap._running = True

    def stop(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.tap is not None:
            self.tap._running = False
            if output is None:  # forward raised an error
                self.tap._forget()

    # Quantization moves hooks to new modules, which call them without kwargs.

    def output(self, module: nn.Module, args: tuple, *rest: Any) -> None:
        self._keep(rest[-1])

    def input(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        value = args[0] if args else next(iter((kwargs or {}).values()), None)
        self._keep(value, overwritten=getattr(module, "inplace", False))

    def _keep(self, value: Any, overwritten: bool = False) -> None:
        # Activation checkpointing runs layers again in backward, outside of the model's forward.
        if self.tap is None or not self.tap._running:
            return
        if isinstance(value, (tuple, list)) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a tapped layer gave a {type(value).__name__}, expected a tensor or a tuple that "
                "begins with one: tap another layer, or pass features to the criterion yourself"
            )
        # By the layer itself: its input is what comes before that. Compiled code does not tell what
        # was written into a tensor later.
        if overwritten or torch.compiler.is_compiling():
            value = value.clone()
        self.tap._captured[self.index] = value
        self.tap._versions[self.index] = _version(value)

    def __deepcopy__(self, memo: dict) -> "_Probe":
        return _Probe()

    def __reduce__(self):
        return _Probe, ()


def _version(tensor: Tensor) -> int | None:
    """Counts what was written into a tensor; None where nobody counts."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None
    return tensor._version


def _overwritten(tensor: Tensor, version: int | None) -> bool:
    now = _version(tensor)
    return None not in (version, now) and version != now


def _forget_compiled_code() -> None:
    # Compiled code has no guard on hooks: it would go on without the new one, or with the old one.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _unwrap(model: nn.Module) -> nn.Module:
    """The module inside all wrappers: those whose only child is the wrapped module."""
    while True:
        if isinstance(model, nn.DataParallel):
            raise TypeError(
                "model is a DataParallel, whose replicas each see a part of the batch: use "
                "torch.nn.parallel.DistributedDataParallel"
            )
        children = dict(model.named_children())
        if len(children) != 1 or not children.keys() & {"module", *_TRANSPARENT}:
            return model
        (model,) = children.values()


def _last_linear(root: nn.Module) -> nn.Module:
    linears = [module for module in root.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError(
            f"layers is None, but {type(root).__name__} has no nn.Linear whose input could be "
            "tapped: name the layers, as in model.named_modules()"
        )
    return linears[-1]


def _find(root: nn.Module, layer: object) -> nn.Module:
    if isinstance(layer, nn.Module):
        layer = _unwrap(layer)
        if not any(module is layer for module in root.modules()):
            raise ValueError(
                f"layers holds a {type(layer).__name__} that is not part of the model: pass one "
                "of model.modules(), or its name"
            )
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"layers holds a {type(layer).__name__}, expected names or modules of the model"
        )
    modules = {_canonical(name): module for name, module in root.named_modules()}
    name = _canonical(layer)
    while name not in modules and name.partition(".")[0] == "module":
        name = name.partition(".")[2]
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.3) or list(modules)[1:6]
        raise ValueError(
            f"layers names {layer!r}, which the model does not have; near matches: "
            + ", ".join(map(repr, near))
        )
    return _unwrap(modules[name])


def _canonical(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)
