// The Python module discfused._C: one submodule per device, with the stages of the contract.

#include <torch/csrc/utils/pybind.h>

#include "cpu/memory.h"
#include "cpu/ops.h"
#ifdef DISCFUSED_CUDA
#include "cuda/bindings.h"
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  namespace py = pybind11;
  // Other Python threads run on while kernels compute.
  using Unlocked = py::call_guard<py::gil_scoped_release>;

  auto cpu = module.def_submodule("cpu", "Kernels for CPU tensors.");
  cpu.def("members", discfused::cpu::members, Unlocked());
  cpu.def("histogram", discfused::cpu::histogram, Unlocked());
  cpu.def("terms", discfused::cpu::terms, Unlocked());
  cpu.def("gradient", discfused::cpu::gradient, Unlocked());
  cpu.def("kept_bytes", discfused::cpu::kept_bytes);
#ifdef DISCFUSED_CUDA
  discfused::cuda::bind(module.def_submodule("cuda", "Kernels for CUDA tensors."));
#endif
}
