// The submodule `cuda` of discfused._C.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "cuda/ops.h"

namespace discfused::cuda {

inline void bind(pybind11::module_ module) {
  // Other Python threads run on while kernels are launched.
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("members", members, Unlocked());
  module.def("histogram", histogram, Unlocked());
  module.def("terms", terms, Unlocked());
  module.def("gradient", gradient, Unlocked());
  module.def("matmul", matmul, Unlocked());
}

}  // namespace discfused::cuda
