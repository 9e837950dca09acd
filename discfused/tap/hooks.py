"""Hooks on layers, and around their calls. Copies and pickles of a layer do not contain them."""

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

_OF_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
_CALL = "_compiled_call_impl"  # what a module calls in place of its own `_call_impl`


class Hook:
    """Calls a function. Quantization moves hooks to other layers, which may then be copied."""

    def __init__(self, function: Callable[..., Any] | None = None):
        self.function = function

    def __call__(self, *arguments: Any) -> None:
        if self.function is not None:
            self.function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle and copy.deepcopy
        return Hook, ()


class Around(Hook):
    """Calls a layer, and then a function: also after a KeyboardInterrupt, for which PyTorch calls
    no hook. Layers look for `module.compile()` here, so that waits, too."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]):
        super().__init__(function)
        self.module = weakref.ref(module)
        self.before = vars(module).get(_CALL)  # compiled code, that of another tap, or None
        vars(module)[_CALL] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.module()  # alive, because it is called
        call = self.before if isinstance(self.before, Around) else module._call_impl
        try:
            return call(*args, **kwargs)
        finally:
            super().__call__(module)

    def remove(self) -> None:
        self.function = None
        if (module := self.module()) is None:
            return
        outer = vars(module).get(_CALL)
        if outer is self:
            vars(module)[_CALL] = self.before
        while isinstance(outer, Around):
            if outer.before is self:
                outer.before = self.before
            outer = outer.before
        if vars(module).get(_CALL) is None:
            vars(module).pop(_CALL, None)


class Handles:
    """The handles of hooks on several layers. They keep neither layers nor functions alive."""

    def __init__(self) -> None:
        self._handles: list[tuple[weakref.ref[nn.Module], Any]] = []
        self._around: list[Around] = []

    def add(
        self, module: nn.Module, kind: str, function: Callable[..., Any], **options: Any
    ) -> None:
        handle = getattr(module, f"register_{kind}")(Hook(function), **options)
        self._handles.append((weakref.ref(module), handle))
        # pickle and copy look up this name, first in the instance.
        state = functools.partial(_state_without_hooks, weakref.ref(module))
        module.__dict__["__getstate__"] = state

    def surround(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._around.append(Around(module, function))

    def remove(self) -> None:
        while self._around:
            self._around.pop().remove()
        handles, self._handles = self._handles, []
        for reference, handle in handles:
            hook = (handle.hooks_dict_ref() or {}).get(handle.id)
            if hook is not None:
                hook.function = None  # compiled code guards this attribute, but not the hook
            handle.remove()
            module = reference()
            if module is not None and not any(_ours(vars(module)[name]) for name in _OF_HOOKS):
                vars(module).pop("__getstate__", None)


def _ours(hooks: dict[int, Any]) -> set[int]:
    return {number for number, hook in hooks.items() if isinstance(hook, Hook)}


def _state_without_hooks(reference: weakref.ref[nn.Module]) -> Any:
    module = reference()
    of_class = getattr(type(module), "__getstate__", None)  # object has none before Python 3.11
    state = vars(module) if of_class is None else of_class(module)
    if not isinstance(state, dict):
        return state
    ours = ("__getstate__", _CALL)  # the second is in no state of PyTorch's, either
    state = {name: value for name, value in state.items() if name not in ours}
    hooks = _ours(vars(module)["_forward_hooks"]) | _ours(vars(module)["_forward_pre_hooks"])
    for name in _OF_HOOKS:
        if name in state:
            state[name] = OrderedDict(item for item in state[name].items() if item[0] not in hooks)
    return state
