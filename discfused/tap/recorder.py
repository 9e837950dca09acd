"""Hooks that record the first forward passes, to find the input of the classifier."""

import sys
import threading
import weakref
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode

from discfused.tap.captured import Passes
from discfused.tap.classifier import Trace


class _Recording(NamedTuple):
    trace: Trace
    outermost: nn.Module  # the outermost module that was called


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
            root: Any = self.root()  # alive, because it runs
            trace = Trace(root)
            # First, so that `end` undoes the rest, of which a KeyboardInterrupt may leave a part.
            running.recording = _Recording(trace, module)
            self.passes.recordings.add(trace)
            _Eager.enter(trace)
            _push_mode(trace)
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
        """Ends the recording, if it is that of this module's call. Runs again if it was stopped."""
        if torch.compiler.is_compiling():
            return
        recording = getattr(self.passes.running, "recording", None)
        if recording is None or module is not recording.outermost:
            return
        modes = _get_current_function_mode_stack()
        if recording.trace in modes:  # perhaps below those of other taps
            above = modes[modes.index(recording.trace) + 1 :]
            for _ in (recording.trace, *above):
                _pop_mode()
            for mode in above:
                _push_mode(mode)
        _Eager.leave(recording.trace)
        self.passes.recordings.discard(recording.trace)
        self.passes.running.recording = None


class _Eager:
    """Makes compiled code run eagerly, in all threads, as long as there are traces."""

    lock = threading.Lock()
    traces: ClassVar[set[Trace]] = set()
    stance: Any = None

    @classmethod
    def enter(cls, trace: Trace) -> None:
        with cls.lock:
            if not cls.traces and "torch._dynamo" in sys.modules:  # importing it takes a second
                cls.stance = torch.compiler.set_stance("force_eager")
            cls.traces.add(trace)

    @classmethod
    def leave(cls, trace: Trace) -> None:
        with cls.lock:
            cls.traces.discard(trace)
            if not cls.traces and cls.stance is not None:
                cls.stance.__exit__(None, None, None)
                cls.stance = None
