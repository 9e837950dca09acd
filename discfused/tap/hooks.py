"""Hooks on layers, and around their calls. Copies and pickles of a layer do not contain them."""

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

_OF_HOOKS = (  # those that hold the hooks come last: `Handles.remove` finds a hook there
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_pre_hooks",
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
    """Hooks on several layers. They keep neither layers nor functions alive.

    A hook is noted before it is registered, and until all are removed, so that `remove` can finish
    what a KeyboardInterrupt has stopped.
    """

    def __init__(self) -> None:
        self._hooks: list[tuple[weakref.ref[nn.Module], Hook]] = []
        self._around: list[Around] = []

    def add(
        self, module: nn.Module, kind: str, function: Callable[..., Any], **options: Any
    ) -> None:
        hook = Hook(function)
        self._hooks.append((weakref.ref(module), hook))
        # pickle and copy look up this name, first in the instance.
        state = functools.partial(_state_without_hooks, weakref.ref(module))
        module.__dict__["__getstate__"] = state
        getattr(module, f"register_{kind}")(hook, **options)

    def surround(self, module: nn.Module, function: Callable[..., Any]) -> None:
        around = Around(module, function)
        self._around.append(around)
        vars(module)[_CALL] = around

    def remove(self) -> None:
        try:
            self._remove()
        except BaseException:  # KeyboardInterrupt: Python calls a finalizer only once
            self._remove()
            raise

    def _remove(self) -> None:
        for around in self._around:
            around.remove()
        for reference, hook in self._hooks:
            hook.function = None  # compiled code guards this attribute, but not the hook
            module = reference()
            if module is None:
                continue
            of_module = [vars(module)[name] for name in _OF_HOOKS]
            numbers = [n for hooks in of_module for n, each in list(hooks.items()) if each is hook]
            for hooks in of_module:
                for number in numbers:
                    hooks.pop(number, None)
            if not any(map(_ours, of_module)):
                vars(module).pop("__getstate__", None)
        self._hooks, self._around = [], []


def _ours(hooks: dict[int, Any]) -> set[int]:
    return {number for number, hook in list(hooks.items()) if isinstance(hook, Hook)}


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
