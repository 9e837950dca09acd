// Memory that is kept for the next call.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace discfused::cpu {

// Like at::empty, without the way through the dispatcher, which a small batch would feel. A large
// tensor gets the memory of an earlier one that is no longer used, if there is one: to get fresh
// memory of the system, page by page, takes several times as long as all that is computed here. No
// more is kept than a few such tensors, and 512 MB.
at::Tensor empty_kept(at::IntArrayRef shape, const at::TensorOptions& options);

// How much waits for the next call.
int64_t kept_bytes();

}  // namespace discfused::cpu
