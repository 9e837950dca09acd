"""In which mode of automatic differentiation a call is made, if it is not backward alone."""

import torch
from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def in_transform() -> bool:
    """Whether this is called within a transform of torch.func, such as vmap or grad."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    )
