// The autograd formula of the operators in the compiled library, on the dispatcher's Autograd key:
// eager mode, torch.compile and make_fx meet the same one. discfused/_ops.py has the schemas.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <functional>
#include <mutex>

#include "operators.h"

namespace discfused {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum class Backend { kCpu, kCuda };

constexpr const char* name_of(Backend backend) { return backend == Backend::kCpu ? "cpu" : "cuda"; }

template <Backend B>
std::string name_of(const char* operation) {
  return name_of(B) + std::string("_") + operation;
}

// Looked up once: a search by name takes longer than a small kernel.
template <Backend B, typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* operation) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(("discfused::" + name_of<B>(operation)).c_str(), "")
      .template typed<Signature>();
}

bool wants_gradient(const Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad() && at::GradMode::is_enabled();
}

// ---------------------------------------------------------------- backward

// The node of the graph between features and what was computed from them.
class FeaturesNode : public torch::autograd::Node {
 public:
  using Formula = std::function<Tensor(const Tensor& features, const variable_list& grads)>;

  FeaturesNode(const char* backend, const Tensor& features, Formula formula)
      : Node(torch::autograd::collect_next_edges(features)),
        backend_(backend),
        features_(features, /*is_output=*/false),
        formula_(std::move(formula)) {}

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor features = features_.unpack();  // an error after release_variables
    return {formula_(features, grads)};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    features_.reset_data();
    formula_ = nullptr;
  }

  std::string name() const override { return std::string("discfused_") + backend_; }

 private:
  const char* backend_;
  torch::autograd::SavedVariable features_;
  Formula formula_;
};

// Older releases of PyTorch hold nodes by std::shared_ptr, newer ones by c10::intrusive_ptr.
template <typename Pointer = decltype(torch::autograd::Edge::function), typename... Arguments>
Pointer make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<FeaturesNode>(std::forward<Arguments>(arguments)...);
  } else {
    return c10::make_intrusive<FeaturesNode>(std::forward<Arguments>(arguments)...);
  }
}

template <Backend B>
void record(
    const Tensor& features, std::initializer_list<Tensor> results, FeaturesNode::Formula formula) {
  const auto node = make_node(name_of(B), features, std::move(formula));
  for (const Tensor& result : results) torch::autograd::set_history(result, node);
}

// A gradient that is to be differentiated again (create_graph): an error, never a number.
template <Backend B>
struct Once : torch::autograd::Function<Once<B>> {
  static Tensor forward(AutogradContext*, const Tensor& gradient, at::TensorList /*inputs*/) {
    return gradient.view_as(gradient);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(
        false, "the \"", name_of(B),
        "\" backend of discfused cannot be differentiated twice: use backend=\"reference\" for "
        "double backward");
  }
};

template <Backend B>
Tensor once(Tensor gradient, std::initializer_list<Tensor> inputs) {
  variable_list differentiated;
  for (const Tensor& input : inputs) {
    if (wants_gradient(input)) differentiated.push_back(input);
  }
  return differentiated.empty() ? gradient
                                : Once<B>::apply(gradient, at::TensorList(differentiated));
}

OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// ---------------------------------------------------------------- on the Autograd key

template <Backend B>
Tensor gradient(
    const Tensor& features, at::TensorList rows, at::TensorList kept,
    const OptionalTensor& grad_penalty, const OptionalTensor& grad_gini,
    const OptionalTensor& grad_kl, int64_t activation, double gini_weight, double kl_weight) {
  static const auto op = find<B, operators::Gradient>("gradient");
  Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = op.call(
        features, rows, kept, grad_penalty, grad_gini, grad_kl, activation, gini_weight, kl_weight);
  }
  const Tensor none;
  return once<B>(
      result,
      {features, grad_penalty.value_or(none), grad_gini.value_or(none), grad_kl.value_or(none)});
}

template <Backend B>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> terms(
    const Tensor& features, at::TensorList rows, c10::SymInt num_classes,
    const OptionalTensor& prior, int64_t activation, int64_t impurity, double gini_weight,
    double kl_weight) {
  static const auto op = find<B, operators::Terms<c10::SymInt>>("terms");
  std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = op.call(
        features, rows, std::move(num_classes), prior, activation, impurity, gini_weight,
        kl_weight);
  }
  if (wants_gradient(features)) {
    const auto& [penalty, gini, kl, kept] = result;
    record<B>(
        features, {penalty, gini, kl},
        [rows = rows.vec(), kept = kept, activation, gini_weight, kl_weight](
            const Tensor& x, const variable_list& grads) {
          return gradient<B>(
              x, rows, kept, optional(grads[0]), optional(grads[1]), optional(grads[2]), activation,
              gini_weight, kl_weight);
        });
  }
  return result;
}

template <Backend B>
Tensor histogram_gradient(
    const Tensor& grad, const Tensor& features, at::TensorList rows, int64_t activation) {
  static const auto op = find<B, operators::HistogramGradient>("histogram_gradient");
  Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = op.call(grad, features, rows, activation);
  }
  return once<B>(result, {grad, features});
}

template <Backend B>
Tensor histogram(
    const Tensor& features, at::TensorList rows, c10::SymInt num_classes, int64_t activation) {
  static const auto op = find<B, operators::Histogram<c10::SymInt>>("histogram");
  Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = op.call(features, rows, std::move(num_classes), activation);
  }
  if (wants_gradient(features)) {
    record<B>(
        features, {result},
        [rows = rows.vec(), activation](const Tensor& x, const variable_list& grads) {
          if (!grads[0].defined()) return Tensor();
          return histogram_gradient<B>(grads[0], x, rows, activation);
        });
  }
  return result;
}

template <Backend B>
void implement(torch::Library& library) {
  library.impl(name_of<B>("terms").c_str(), TORCH_FN(terms<B>));
  library.impl(name_of<B>("gradient").c_str(), TORCH_FN(gradient<B>));
  library.impl(name_of<B>("histogram").c_str(), TORCH_FN(histogram<B>));
  library.impl(name_of<B>("histogram_gradient").c_str(), TORCH_FN(histogram_gradient<B>));
}

}  // namespace

TORCH_LIBRARY_IMPL(discfused, Autograd, library) {
  implement<Backend::kCpu>(library);
  implement<Backend::kCuda>(library);
}

}  // namespace discfused
