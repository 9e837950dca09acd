"""Captured features of each forward pass, which are looked up by the output of the pass.

An output with a graph, and any tensor computed from it, leads to its pass through the graph, which
also keeps the captured features alive. Without a graph, or if the output itself was captured, the
outputs of the last passes are compared.
"""

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from discfused.tap.classifier import Node, Trace, same, tensors

_RECENT = 2  # forward passes, so that an evaluation does not keep all its features
_TRACED = 8
_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "Convolution")  # nodes of a graph


class Pass:
    """A forward pass: its captured features, or its trace until the classifier is found."""

    def __init__(self, size: int, depth: int, trace: Trace | None = None):
        self.captured: list[Any] = [None] * size
        self.versions: list[int | None] = [None] * size
        self.depth = depth  # of the outermost module that was called
        self.trace: Any = trace
        self.mark: weakref.ref[_Mark] | None = None  # of a traced pass with a graph
        self.outputs: list[weakref.ref[Tensor]] = []

    def keep(self, index: int, tensor: Tensor) -> None:
        self.captured[index] = tensor
        self.versions[index] = None if tensor.is_inference() else tensor._version

    def overwritten(self) -> bool:
        return any(
            version is not None and not tensor.is_inference() and tensor._version != version
            for tensor, version in zip(self.captured, self.versions, strict=True)
        )


class _Mark:
    """Marks the graph of a traced pass. It does not keep the pass: its trace keeps tensors whose
    graph may contain the mark."""

    def __init__(self, traced: Pass):
        self.traced = weakref.ref(traced)


class Passes:
    """The forward passes of a model, shared by its hooks."""

    def __init__(self, size: int):
        self.size = size
        self.running = threading.local()
        self.shapes: list[torch.Size | None] = [None] * size  # for print(tap)
        # Compiled code always writes to the same variable, so only the last pass is known.
        self.compiled: list[Any] = [None] * size
        self.compiled_output: Any = None  # the output of the model in that pass
        self.lock = threading.Lock()
        self._key = object()  # key in the metadata of graph nodes
        self.recordings: set[Trace] = set()  # running, in all threads
        self.known = False  # whether the classifier is
        self._recent: list[Pass] = []
        self._traced: list[Pass] = []

    def start(self, depth: int) -> None:
        if self._traced:
            self.forget_traced()
        # A pass that an error interrupted has the same depth, or a larger one.
        current = self.current()
        if current is None or depth <= current.depth:
            self.running.current = Pass(self.size, depth)

    def current(self) -> Pass | None:
        return getattr(self.running, "current", None)

    def keep(self, index: int, tensor: Tensor) -> None:
        current = self.current()
        if current is not None:
            current.keep(index, tensor)
            self.shapes[index] = tensor.shape

    def finish(self, depth: int, output: Any) -> None:
        current = self.current()
        if current is None:
            return
        if output is not None:  # None: forward raised an error
            self._bind(current, output, outermost=depth == current.depth)
        if depth == current.depth:
            self.running.current = None

    def add_traced(self, trace: Trace, output: Any) -> None:
        traced, last = Pass(self.size, 0, trace), trace.finish(output)
        if last is not None and last.grad_fn is not None:
            graph: Any = last.grad_fn
            graph.metadata[self._key] = mark = _Mark(traced)
            traced.mark = weakref.ref(mark)
        self._traced = [*self._traced[1 - _TRACED :], traced]

    def forget_traced(self) -> None:
        """Forgets traced passes whose output and its graph are gone."""
        self._traced = [
            each for each in self._traced
            if (each.trace.last and each.trace.last.tensor() is not None)
            or (each.mark and each.mark())
        ]  # fmt: skip

    def resolve(self, traced: Pass, logits: Node, graph: Any, features: Tensor) -> None:
        """Turns a traced pass into an ordinary one, after the classifier was found."""
        self._traced = [each for each in self._traced if each is not traced]
        traced.trace = None
        traced.keep(0, features)
        self.shapes[0] = features.shape
        if (tensor := logits.tensor()) is not None:
            self._bind(traced, tensor)
        elif graph is not None:  # only what was computed from the logits is still there
            graph.metadata[self._key] = traced

    def _bind(self, current: Pass, output: Any, outermost: bool = True) -> None:
        if any(tensor is None for tensor in current.captured):
            return
        graphs = [t.grad_fn for t in current.captured if t.grad_fn is not None]
        newest = max((node._sequence_nr() for node in graphs), default=-1)
        known = False
        made = list(tensors(output))
        # The pass keeps captured tensors alive, so they cannot limit its lifetime.
        others = [t for t in made if not any(t is captured for captured in current.captured)]
        for tensor in others or (made if outermost else ()):
            node: Any = tensor.grad_fn
            if node in graphs or (node is None and not graphs):
                current.outputs.append(weakref.ref(tensor, self._prune))
                known = True
            # A node from which the features were computed would form a reference cycle with them.
            elif node is not None and node._sequence_nr() > newest:
                node.metadata[self._key] = current
        if known:
            before = [each for each in self._recent if each is not current]
            self._recent = [*before[1 - _RECENT :], current]

    def _prune(self, dead: Any = None) -> None:
        self._recent = [
            each for each in self._recent if any(ref() is not None for ref in each.outputs)
        ]

    def of(self, output: Any) -> dict[Pass, tuple[Node, Any] | None]:
        """The passes that computed the tensors in `output`; of a traced pass, with the result that
        was traced, and its node in the graph."""
        made = list(tensors(output))
        for each in reversed(self._recent):
            if any(same(ref(), tensor) for ref in each.outputs for tensor in made):
                return {each: None}
        traces = self._traced
        if (recording := getattr(self.running, "recording", None)) is not None:
            traces = [*traces, Pass(self.size, 0, recording.trace)]
        for each in reversed(traces):
            for tensor in made:
                if (result := each.trace.result(tensor)) is not None:
                    return {each: (result, tensor.grad_fn)}
        found: dict[Pass, tuple[Node, Any] | None] = {}
        traced = {
            node: (each, result)
            for each in traces
            for node, result in each.trace.gradient_functions().items()
        }
        recent = {t.grad_fn: each for each in self._recent for t in each.captured}
        for node, stop in _graph(made):
            known = node.metadata.get(self._key) or recent.get(node)
            made_by, result = traced.get(node, (known, None))
            if isinstance(made_by, _Mark):
                made_by = made_by.traced()
                result = made_by and made_by.trace and made_by.trace.last
            if made_by is not None:
                found.setdefault(made_by, result and (result, node))
            # Tensors before a product were computed from features, not from logits.
            if made_by is not None or (traced and node.name().startswith(_PRODUCTS)):
                stop()
        return found

    def compiled_for(self, output: Any) -> list[Tensor] | None:
        """The last features captured by compiled code, if they belong to the output."""
        captured, self.compiled = self.compiled, [None] * self.size
        given, self.compiled_output = self.compiled_output, None
        if any(tensor is None for tensor in captured):
            return None
        made = list(tensors(output))
        if not any(tensor.grad_fn is not None for tensor in made):
            known = any(same(each, tensor) for each in tensors(given) for tensor in made)
            return captured if known and all(t.grad_fn is None for t in captured) else None
        wanted = {_copied(tensor.grad_fn) for tensor in captured}
        for node, _ in _graph(made):
            wanted.discard(node)
            if not wanted:
                last = Pass(self.size, 0)
                last.captured = captured
                self._bind(last, given)  # for another loss of the same logits
                return captured
        return None


def _copied(node: Any) -> Any:
    """The node of the copied tensor, if the copy has its own: with some backends for debugging, and
    where a hook was compiled alone, with one input."""
    if node is None or not (
        node.name() == "CloneBackward0"
        or (node.name() == "CompiledFunctionBackward" and len(node.next_functions) == 1)
    ):
        return node
    return node.next_functions[0][0]


def _graph(made: list[Tensor]) -> Iterator[tuple[Any, Any]]:
    """Every node of the graphs of the tensors, and a function that stops the walk at that node."""
    waiting = [tensor.grad_fn for tensor in made if tensor.grad_fn is not None]
    seen = set()
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        further = [following for following, _ in node.next_functions if following is not None]
        yield node, further.clear
        waiting += further
