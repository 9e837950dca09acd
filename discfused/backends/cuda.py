"""The CUDA kernels of the compiled library. Those of this loss are not written yet: see `doctor`."""

from discfused.backends import _library
from discfused.backends.cpu import CpuBackend


class CudaBackend(CpuBackend):
    name = "cuda"
    device_type = "cuda"

    def unavailable(self) -> str | None:
        return _library.cuda_missing()
