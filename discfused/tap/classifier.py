"""Finds the input of a model's classifier, before dropout, in one recorded forward pass.

The search goes from the logits back over operators that mix neither features nor classes, to the
one matrix product that computed them. From the input of the product it goes back over dropout, and
then to the layer that has this tensor as input or output. Any other structure is an error: nothing
is guessed.
"""

import math
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_PRODUCTS = {"linear", "matmul", "mm", "__matmul__", *_CONVOLUTIONS}
# They change shape or dtype only.
_AS = {"view_as", "expand_as", "type_as"}
_SAME = _AS | {
    "flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "clone", "to",
    "type", "float", "double", "half", "bfloat16",
}  # fmt: skip
_SELECT = {"__getitem__", "select", "gather", "index_select", "take_along_dim"}
# Also allowed between the product and the logits.
_AFTER = _SAME | _SELECT | {
    "narrow", "chunk", "split", "unbind", "expand", "transpose", "permute", "movedim",
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "neg", "__neg__",
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "__truediv__",
    "mean", "sum", "stack", "relu", "relu_",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool2d",
}  # fmt: skip
_KEPT = 64  # number of last results kept alive: the classifier comes late


class Unclear(ValueError):
    """This forward pass does not determine the input of the classifier."""


class Classifier(NamedTuple):
    """The layer to hook, and how to get the classifier's input from the captured tensor."""

    name: str
    layer: nn.Module
    capture: str  # "input" or "output"
    shape: tuple[int, ...] | None  # of a sample, if it differs from the captured shape
    channels_first: bool

    def features(self, captured: Tensor) -> Tensor:
        """Features in the last dimension."""
        if self.shape is not None:
            captured = captured.reshape(captured.shape[0], *self.shape)
        return captured.movedim(1, -1) if self.channels_first else captured


class Node:
    """One value in the forward pass. A tensor that is overwritten in place has several values."""

    def __init__(self, tensor: Tensor, op: str, inputs: list["Node"], constant: bool):
        self.tensor = weakref.ref(tensor)
        self.constant = constant  # computed from parameters and buffers only
        self.version = 0 if tensor.is_inference() else tensor._version
        self.shape = tuple(tensor.shape)
        self.op = op
        # The second input of these is the weight, even if it is not a parameter, as with FSDP. Of
        # others (x.view_as(y)) only the shape or the dtype matters.
        first = op in _CONVOLUTIONS | _SELECT | _AS | {"linear"}
        values = inputs[:1] if first else inputs
        self.inputs = [node for node in values if not node.constant]
        self.weights = [node.shape for node in inputs if node.constant or node not in values]


class Trace(TorchFunctionMode):
    """Records the operators and the calls of layers of one forward pass."""

    def __init__(self, root: nn.Module):
        super().__init__()
        self._names = {module: name for name, module in root.named_modules()}
        self._constants = {id(t) for t in (*root.parameters(), *root.buffers())}
        self._nodes: dict[int, Node] = {}
        self._kept: deque[Tensor] = deque(maxlen=_KEPT)
        self._calls: list[tuple[nn.Module, str, Node]] = []
        self.last: Node | None = None  # after `finish`

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "__name__", "")
        inputs = [self._node(tensor) for tensor in tensors((args, kwargs))]
        if "dropout" in op:
            if not _argument(args, kwargs, 1, "p", 0.5):
                op = "no dropout"  # p = 0
            elif _argument(args, kwargs, 3, "inplace", False) or op.endswith("_"):
                inputs[0] = self._add(args[0].clone(), inputs[0].op, inputs[0].inputs, inputs[0])
        result = func(*args, **kwargs)
        written = [args[0]] if op == "__setitem__" else tensors(result)
        for tensor in written:
            node = self._known(tensor)
            if not (op in _SAME and node in inputs and tensor.shape == node.shape):
                self._add(tensor, op, inputs)
        return result

    def call(self, module: nn.Module, capture: str, value: Any) -> None:
        """Records the input or output of a layer."""
        with torch._C.DisableTorchFunction():
            tensor = next(tensors(value), None)
            if tensor is not None and module in self._names:
                self._calls.append((module, capture, self._node(tensor)))

    def finish(self, output: Any) -> Tensor | None:
        """The last result in the output. It limits the life of the trace, so it is not kept."""
        made = {id(tensor) for tensor in tensors(output)}
        last = next((kept for kept in reversed(self._kept) if id(kept) in made), None)
        if last is not None:
            self.last = self._node(last)
            self._kept = deque((kept for kept in self._kept if kept is not last), _KEPT)
        return last

    def result(self, tensor: Tensor) -> Node | None:
        """The last operator result that is this tensor, or whose memory this tensor views."""
        if (node := self._known(tensor)) is not None:
            return node
        last = None if self.last is None else self.last.tensor()
        memory = next((each for each in (last, *reversed(self._kept)) if same(each, tensor)), None)
        return None if memory is None else self._known(memory)

    def candidates(self) -> str:
        last = dict.fromkeys(self._names[module] for module, *_ in reversed(self._calls))
        return ", ".join(map(repr, list(last)[:8]))

    def gradient_functions(self) -> dict[Any, Node]:
        return {kept.grad_fn: self._node(kept) for kept in self._kept if kept.grad_fn is not None}

    def classifier(self, logits: Node) -> tuple[Classifier, Tensor]:
        """The layer to hook, and the tensor that it would capture in this pass. Raises Unclear."""
        products = self._products(logits, logits.shape[-1])
        sources = {self._before_dropout(product.inputs[0]): product for product in products}
        for source in list(sources):  # LoRA and similar: two products of the same input
            behind = source
            while behind.op in _PRODUCTS and len(behind.inputs) == 1:
                behind = self._before_dropout(behind.inputs[0])
            if behind is not source and behind in sources:
                del sources[source]
        if len(sources) != 1:
            raise Unclear(f"the logits come from {len(sources)} classifiers with different inputs")
        ((source, product),) = sources.items()
        module, capture = self._layer(source)
        given = product.inputs[0].shape
        found = Classifier(
            self._names[module], module, capture,
            given[1:] if source.shape != given else None, product.op in _CONVOLUTIONS,
        )  # fmt: skip
        tensor = source.tensor()
        if tensor is None or not (tensor.is_inference() or tensor._version == source.version):
            raise Unclear("the features of this forward pass were overwritten or are gone")
        return found, tensor

    def _node(self, tensor: Tensor) -> Node:
        return self._known(tensor) or self._add(tensor, "")

    def _known(self, tensor: Tensor) -> Node | None:
        node = self._nodes.get(id(tensor))  # a new tensor can have the id of a deleted one
        return node if node is not None and node.tensor() is tensor else None

    def _add(
        self, tensor: Tensor, op: str, inputs: Sequence[Node] = (), copied: Node | None = None
    ) -> Node:
        constant = (
            all(node.constant for node in inputs) if inputs else id(tensor) in self._constants
        )
        node = copied or Node(tensor, op, list(inputs), constant)
        if copied is not None:  # a copy of a tensor that will be overwritten
            node.tensor, node.version = weakref.ref(tensor), tensor._version
        self._nodes[id(tensor)] = node
        self._kept.append(tensor)
        return node

    def _products(self, logits: Node, C: int) -> list[Node]:
        """The matrix products that the logits are computed from, if there is nothing else."""
        found, waiting = [], [logits]
        while waiting:
            node = waiting.pop()
            if node.op in _PRODUCTS:
                # whether the weight has a row for each class, not a column
                rows = node.op == "linear" or node.op in _CONVOLUTIONS
                outputs = node.weights[0][0 if rows else -1] if node.weights else 0
                kernel = node.weights[0][2:] if node.op in _CONVOLUTIONS else ()
                if len(node.inputs) != 1 or outputs != C or any(size != 1 for size in kernel):
                    raise Unclear(f"the logits come from a {node.op}, not a linear classifier")
                if node not in found:
                    found.append(node)
            elif node.op in _AFTER or "dropout" in node.op:
                waiting += node.inputs
            elif not node.op:
                raise Unclear("the logits were computed outside of the layers of the model")
            else:
                raise Unclear(f"the logits come from {node.op}, not from a linear layer")
        return found

    def _before_dropout(self, node: Node) -> Node:
        before, seen = node, node
        while len(seen.inputs) == 1 and ("dropout" in seen.op or seen.op in _SAME | _SELECT):
            op, (seen,) = seen.op, seen.inputs
            if "dropout" not in op:
                continue
            if math.prod(seen.shape) == math.prod(node.shape):
                before = seen
            elif op != "no dropout":
                raise Unclear("the classifier uses only a part of the output of dropout")
        return before

    def _layer(self, source: Node) -> tuple[nn.Module, str]:
        """A layer with the value as input, else a layer with it as output."""
        for capture in ("input", "output"):
            ran = [module for module, end, _ in self._calls if end == capture]
            found = [
                module
                for module, end, node in self._calls
                if end == capture and node is source and ran.count(module) == 1
            ]
            # Prefer layers that do not overwrite the value, and layers to containers.
            found.sort(key=lambda module: not getattr(module, "inplace", False))
            found.sort(key=lambda module: isinstance(module, nn.Sequential))
            if found:
                return found[0], capture
        if source.op == "view_as" and len(source.inputs) == 1:
            # Backward hooks hand a layer views of its inputs, after our hooks have seen these.
            return self._layer(source.inputs[0])
        raise Unclear(
            "the input of the classifier before dropout is neither the input nor the output of a "
            "layer that runs once"
        )


def same(output: Tensor | None, tensor: Tensor) -> bool:
    """Whether both are the same tensor or, without a graph, share memory."""
    if output is None or tensor.grad_fn is not None or output.grad_fn is not None:
        return output is tensor
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, (output, tensor))):
        return output is tensor  # vmap's have no memory of their own
    return bool(output.untyped_storage()._cdata == tensor.untyped_storage()._cdata)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts (also ModelOutput)."""
    if isinstance(value, Tensor):
        if not nn.parameter.is_lazy(value):  # which has no shape so far
            yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors(each)


def _argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str, default: Any
) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)
