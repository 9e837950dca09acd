"""FeatureTap: captures the features of a layer without a change of the model's code."""

import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from discfused import _inputs
from discfused.tap.captured import Pass, Passes
from discfused.tap.classifier import Classifier, Node, Unclear
from discfused.tap.hooks import Handles
from discfused.tap.names import find, unwrap
from discfused.tap.recorder import Recorder

CAPTURES = ("output", "input")


class FeatureTap:
    """Captures the output (or input) of one or several layers in every forward pass of a model.

        with FeatureTap(model, "layer4") as tap:
            logits = model(images)
            features = tap.take(logits)

    Args:
        model: any module. Names resolve through wrappers whose only child is `module`
            (DistributedDataParallel, AveragedModel, DeepSpeed), and through those of torch.compile
            and FSDP. Call the model or a part of it as a module, model(x), because model.forward(x)
            runs no hooks.
        layers: a name as in `model.named_modules()`, a module of the model, or a list of them. The
            prefixes `module.` and `_orig_mod.` are optional. Default: the input of the classifier,
            before dropout. The first call of `take` finds it from the operators of its forward
            pass, which must not be compiled (a tap on a compiled model ensures this): the
            classifier is the one linear layer (or 1 x 1 convolution) that computes the logits.
            Features are then in the last dimension. If the result is ambiguous, `take` raises an
            error. print(tap) shows the tapped layer.
        capture: "output" or "input" of the layers. From a tuple the first tensor is used. If a
            module runs several times in one forward pass, the last run counts. The input of a layer
            that works in place (ReLU(inplace=True)) is copied.

    The model's parameters, buffers and state_dict do not change, and copies and pickles of it have
    no hooks. The hooks are removed with `remove()` or with the last reference to the tap. Call
    `tap.remove()` before torch.jit.script. Code that torch.compile made earlier, for this model or
    another of its class, does not run the hooks: call torch.compiler.reset() once.

    Raises:
        ValueError, TypeError: no such layer (the message lists near matches), or a model in
            DataParallel (use DistributedDataParallel).
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
        root = unwrap(model)
        self._root = weakref.ref(root)
        self._removed = ""  # the reason, after the removal
        self._handles, self._recorder = Handles(), Handles()
        self._classifier: Classifier | None = None
        if isinstance(layers, (str, nn.Module)):
            found = find(root, [layers])
        else:
            found = [] if layers is None else find(root, layers)
        self._single = layers is None or isinstance(layers, (str, nn.Module))
        self._passes = Passes(max(len(found), 1))
        self._names = [name for name, _ in found]
        self._capture = capture
        for handles in (self._handles, self._recorder):
            weakref.finalize(self, handles.remove)
        if layers is None:
            recorder = Recorder(self._passes, root)
            for module in model.modules():  # with the wrappers, which hold compiled code
                if not isinstance(module, torch.jit.ScriptModule):
                    self._recorder.add(module, "forward_pre_hook", recorder.enter, with_kwargs=True)
                    self._recorder.add(module, "forward_hook", recorder.leave)
                    self._recorder.surround(module, recorder.end)
        else:
            self._install([layer for _, layer in found], capture)

    def take(self, output: Any) -> Tensor | list[Tensor]:
        """The features of the forward pass that computed `output`; a list if `layers` was a list.

        Args:
            output: the output of the model, or a tensor that was computed from it with a graph; a
                tensor, or a tuple or dict of tensors.

        Raises:
            RuntimeError: there are no such features; the message says what to do.
            ValueError: the input of the classifier is ambiguous.
        """
        if self._removed:
            raise RuntimeError(f"this FeatureTap {self._removed}: attach a new one to the model")
        passes = self._passes
        if torch.compiler.is_compiling():
            captured = passes.compiled
            passes.compiled, passes.compiled_output = [None] * passes.size, None
            if any(tensor is None for tensor in captured):  # the model is not compiled
                from discfused.tap import uncompiled

                captured = uncompiled.take(self, output)
        else:
            captured = self._take(output)
        if self._classifier is not None:
            return self._classifier.features(captured[0])
        return captured[0] if self._single else captured

    def _take(self, output: Any) -> list[Tensor]:
        self._stop_recording()
        found = self._passes.of(output)
        if len(found) > 1:
            raise RuntimeError(
                f"these logits were computed by {len(found)} forward passes: call the criterion "
                "for the logits of each, or pass features to it yourself"
            )
        captured: list[Tensor] | None = None
        for made_by, traced in found.items():
            if traced is not None:
                self._resolve(made_by, *traced)
            captured = made_by.captured
        if not found:
            captured = self._passes.compiled_for(output)
        if captured is None:
            raise RuntimeError(self._missing())
        if any(made_by.overwritten() for made_by in found):
            raise RuntimeError(
                "tapped features were overwritten after they were captured, as by a "
                "torch.nn.ReLU(inplace=True): set inplace=False there, or tap that layer instead"
            )
        return captured

    def _resolve(self, traced: Pass, logits: Node, graph: Any) -> None:
        """Finds the layer to hook in a recorded forward pass, and its features in this pass."""
        try:
            classifier, features = traced.trace.classifier(logits)
        except Unclear as why:
            raise ValueError(
                "layers is None, and FeatureTap cannot identify the input of the classifier, "
                f"because {why}: name the layer, as in attach(model, layers=...); the last layers "
                "that ran are " + traced.trace.candidates()
            ) from None
        self._passes.resolve(traced, logits, graph, features)
        with self._passes.lock:
            if self._passes.known:
                return
            self._classifier = classifier
            self._names, self._capture = [classifier.name], classifier.capture
            try:
                self._install([classifier.layer], classifier.capture)
            except BaseException:  # KeyboardInterrupt: the next pass is recorded, too
                self._handles.remove()
                raise
            self._passes.known = True  # passes of other threads are recorded until then
        self._stop_recording()

    def _stop_recording(self) -> None:
        # The hooks must stay while a pass is being recorded in any thread.
        if self._passes.known and not self._passes.recordings:
            self._recorder.remove()

    def _install(self, layers: list[nn.Module], capture: str) -> None:
        around = []
        root: Any = self._root()  # alive: it has just run, or the tap is being created
        for depth, module in enumerate(root.modules()):
            inside = set(module.modules())
            if any(layer in inside for layer in layers):
                around.append((module, _Around(self._passes, depth)))
        for module, hooks in around:
            self._handles.add(module, "forward_pre_hook", hooks.start)
        for index, layer in enumerate(layers):
            of_layer = _Layer(self._passes, index)
            if capture == "input":
                self._handles.add(layer, "forward_pre_hook", of_layer.input, with_kwargs=True)
            else:
                self._handles.add(layer, "forward_hook", of_layer.output)
        for module, hooks in around:
            self._handles.add(module, "forward_hook", hooks.finish, always_call=True)

    def _missing(self) -> str:
        names = ", ".join(map(repr, self._names)) or "the layers of the model"
        return (
            "no features were captured with these logits: pass the output of the model; check that "
            f"{names} ran as a module in that forward pass (model(x), not model.forward(x)); or "
            "pass features to the criterion yourself"
            + (
                ". Of a compiled model only the last pass is known. Code that torch.compile made "
                "before the tap was created, for this model or another of its class, does not run "
                "the hooks: call torch.compiler.reset() once"
                if "torch._dynamo" in sys.modules
                else ""
            )
        )

    @property
    def names(self) -> list[str]:
        """The tapped layers; empty until the classifier is found."""
        prefix = "input of " if self._capture == "input" else ""
        return [prefix + name for name in self._names]

    def remove(self) -> None:
        """Removes the hooks. The model is as before."""
        self._handles.remove()
        self._recorder.remove()
        self._detach("was removed")

    def __repr__(self) -> str:
        found = [
            f"{self._capture} of {name!r}" + (f" {list(shape)}" if shape is not None else "")
            for name, shape in zip(self._names, self._passes.shapes, strict=False)
        ]
        unknown = "input of the classifier, before dropout; no forward pass so far"
        return f"FeatureTap({self._removed or ', '.join(found) or unknown})"

    def _detach(self, why: str) -> None:
        self._passes = Passes(self._passes.size)
        self._removed = why

    def __enter__(self) -> "FeatureTap":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "_single": self._single, "_names": self._names, "_capture": self._capture,
            "_classifier": None,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handles, self._recorder = Handles(), Handles()
        self._passes = Passes(1)
        self._detach("is a copy, and hooks stay with the original")


class _Around:
    """Hooks of a module that contains a tapped layer or is one."""

    def __init__(self, passes: Passes, depth: int):
        self.passes = passes
        self.depth = depth

    def start(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling():
            self.passes.start(self.depth)
        elif self.depth == 0:
            self.passes.compiled = [None] * self.passes.size

    def finish(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.passes.finish(self.depth, output)
        # The outermost module finishes last. It may contain compiled code without being compiled.
        if torch.compiler.is_dynamo_compiling() or self.passes.compiled_output is not None:
            self.passes.compiled_output = output


class _Layer:
    """Hooks of a tapped layer. Quantization calls them without kwargs."""

    def __init__(self, passes: Passes, index: int):
        self.passes = passes
        self.index = index

    def output(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        self._keep(rest[-1], False)

    def input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        value = args[0] if args else next(iter((kwargs or {}).values()), None)
        self._keep(value, getattr(module, "inplace", False))  # a copy from before the layer ran

    def _keep(self, value: Any, overwritten: bool) -> None:
        if isinstance(value, (tuple, list)) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a tapped layer gave a {type(value).__name__}, expected a tensor or a tuple that "
                "starts with one: tap another layer, or pass features to the criterion yourself"
            )
        if not torch.compiler.is_compiling():
            overwritten |= value.is_inference()  # possibly: such tensors have no version counter
            self.passes.keep(self.index, value.clone() if overwritten else value)
        elif torch.compiler.is_dynamo_compiling():  # not torch.export, which has no side effects
            # Compiled code does not update the version of a tensor that it overwrites later.
            self.passes.compiled[self.index] = value.clone()
