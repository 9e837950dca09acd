"""Helpers for the tests on a GPU.

With TRITON_INTERPRET=1 (`.ci/gpu --rehearse`) the first of each list of cases runs on the CPU, to
find mistakes without a GPU.
"""

import pytest
import torch

from discfused import backends
from discfused.backends import triton_runtime

REHEARSED = triton_runtime.interpreted()
DEVICE = "cpu" if REHEARSED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSED or torch.cuda.is_available()), reason="PyTorch sees no GPU"),
]
on_a_gpu = pytest.mark.skipif(REHEARSED, reason="TRITON_INTERPRET=1: nothing runs on the GPU")


def one_or_all(*values):
    return values[:1] if REHEARSED else values


@pytest.fixture(params=["triton", "cuda"])
def backend(request) -> str:
    why = backends.get(request.param).unavailable()
    if why is not None:
        pytest.skip(f"backend {request.param!r} cannot run here: {why}")
    return request.param
