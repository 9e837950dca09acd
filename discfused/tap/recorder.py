"""Hooks that record the first forward passes, to find the input of the classifier."""

import contextlib
import sys
import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import nn

from discfused.tap.captured import Passes
from discfused.tap.classifier import Trace


class _Recording(NamedTuple):
    trace: Trace
    outermost: nn.Module  # the outermost module that was called
    modes: contextlib.ExitStack


class Recorder:
    """Hooks of all modules. They record forward passes until the classifier is found."""

    def __init__(self, passes: Passes, root: nn.Module):
        self.passes = passes
        self.root = weakref.ref(root)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        if not torch.compiler.is_compiling():
            self._enter(module, args, kwargs)
        elif torch.compiler.is_dynamo_compiling():  # not torch.export, which has no side effects
            from discfused.tap import uncompiled

            uncompiled.refuse()

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> None:
        running = self.passes.running
        if getattr(running, "recording", None) is None:
            if self.passes.known:
                return
            self.passes.forget_traced()
            modes = contextlib.ExitStack()
            modes.enter_context(_Eager())
            root: Any = self.root()  # alive, because it runs
            trace = modes.enter_context(Trace(root))
            running.recording = _Recording(trace, module, modes)
            with self.passes.lock:
                self.passes.recordings += 1
        running.recording.trace.call(module, "input", args or list((kwargs or {}).values()))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        recording = getattr(self.passes.running, "recording", None)
        if recording is None:
            return
        recording.trace.call(module, "output", output)
        if module is recording.outermost:
            self.end(module)
            if not self.passes.known:
                self.passes.add_traced(recording.trace, output)

    def end(self, module: nn.Module) -> None:
        """Ends the recording, if it is that of this module's call."""
        if torch.compiler.is_compiling():
            return
        recording = getattr(self.passes.running, "recording", None)
        if recording is None or module is not recording.outermost:
            return
        recording.modes.close()
        self.passes.running.recording = None
        with self.passes.lock:
            self.passes.recordings -= 1


class _Eager:
    """Makes compiled code run eagerly, in all threads. Several threads may enter."""

    lock = threading.Lock()
    inside = 0
    stance = None

    def __enter__(self) -> None:
        with _Eager.lock:
            if _Eager.inside == 0 and "torch._dynamo" in sys.modules:  # importing it takes a second
                _Eager.stance = torch.compiler.set_stance("force_eager")
            _Eager.inside += 1

    def __exit__(self, *exception: Any) -> None:
        with _Eager.lock:
            _Eager.inside -= 1
            if _Eager.inside == 0 and _Eager.stance is not None:
                _Eager.stance.__exit__(*exception)
                _Eager.stance = None
