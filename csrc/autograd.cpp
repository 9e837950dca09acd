// The autograd formula of the operators in the compiled library, on the dispatcher's Autograd key:
// eager mode, torch.compile and make_fx meet the same one. discfused/_ops.py has the schemas.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

namespace discfused {

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum class Backend { kCpu, kCuda };

template <Backend B>
std::string name_of(const std::string& operation) {
  return (B == Backend::kCpu ? "cpu_" : "cuda_") + operation;
}

// Looked up once: a search by name takes longer than a small kernel.
template <Backend B, typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* operation) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(("discfused::" + name_of<B>(operation)).c_str(), "")
      .template typed<Signature>();
}

// What is no variable of the formula: autograd sees the features and upstream gradients alone.
struct Constants {
  at::TensorList rows;
  at::TensorList kept;
  std::vector<Tensor>* keep = nullptr;
  c10::SymInt num_classes = 0;
  OptionalTensor prior;
  int64_t activation = 0, impurity = 0;
  double gini_weight = 0, kl_weight = 0;
};

bool wants_gradient(const Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad() && at::GradMode::is_enabled();
}

// ---------------------------------------------------------------- calls of the operators

template <Backend B>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> call_terms(
    const Tensor& features, const Constants& c) {
  using Signature = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>(
      const Tensor&, at::TensorList, c10::SymInt, const OptionalTensor&, int64_t, int64_t, double,
      double);
  static const auto op = find<B, Signature>("terms");
  return op.call(
      features, c.rows, c.num_classes, c.prior, c.activation, c.impurity, c.gini_weight,
      c.kl_weight);
}

template <Backend B>
Tensor call_gradient(
    const Tensor& features, const OptionalTensor& grad_penalty, const OptionalTensor& grad_gini,
    const OptionalTensor& grad_kl, const Constants& c) {
  using Signature = Tensor(
      const Tensor&, at::TensorList, at::TensorList, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, int64_t, double, double);
  static const auto op = find<B, Signature>("gradient");
  return op.call(
      features, c.rows, c.kept, grad_penalty, grad_gini, grad_kl, c.activation, c.gini_weight,
      c.kl_weight);
}

template <Backend B>
Tensor call_histogram(const Tensor& features, const Constants& c) {
  using Signature = Tensor(const Tensor&, at::TensorList, c10::SymInt, int64_t);
  static const auto op = find<B, Signature>("histogram");
  return op.call(features, c.rows, c.num_classes, c.activation);
}

template <Backend B>
Tensor call_histogram_gradient(const Tensor& grad, const Tensor& features, const Constants& c) {
  using Signature = Tensor(const Tensor&, const Tensor&, at::TensorList, int64_t);
  static const auto op = find<B, Signature>("histogram_gradient");
  return op.call(grad, features, c.rows, c.activation);
}

// ---------------------------------------------------------------- the formula

// Saves the features, then the rows, then what the terms kept.
void save(AutogradContext* ctx, const Tensor& features, const Constants& c) {
  variable_list saved{features};
  saved.insert(saved.end(), c.rows.begin(), c.rows.end());
  if (c.keep) saved.insert(saved.end(), c.keep->begin(), c.keep->end());
  ctx->save_for_backward(std::move(saved));
  ctx->saved_data["rows"] = static_cast<int64_t>(c.rows.size());
  ctx->saved_data["activation"] = c.activation;
}

Constants restore(AutogradContext* ctx, const variable_list& saved) {
  Constants c;
  const at::TensorList rest = at::TensorList(saved).slice(1);
  const auto rows = static_cast<size_t>(ctx->saved_data["rows"].toInt());
  c.rows = rest.slice(0, rows);
  c.kept = rest.slice(rows);
  c.activation = ctx->saved_data["activation"].toInt();
  return c;
}

OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

template <Backend B>
struct Terms : torch::autograd::Function<Terms<B>> {
  static variable_list forward(
      AutogradContext* ctx, const Tensor& features, const Constants& constants) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [penalty, gini, kl, kept] = call_terms<B>(features, constants);
    *constants.keep = std::move(kept);
    save(ctx, features, constants);
    ctx->saved_data["gini_weight"] = constants.gini_weight;
    ctx->saved_data["kl_weight"] = constants.kl_weight;
    ctx->set_materialize_grads(false);
    return {penalty, gini, kl};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    Constants c = restore(ctx, saved);
    c.gini_weight = ctx->saved_data["gini_weight"].toDouble();
    c.kl_weight = ctx->saved_data["kl_weight"].toDouble();
    return {
        call_gradient<B>(saved[0], optional(grads[0]), optional(grads[1]), optional(grads[2]), c),
        Tensor()};
  }
};

template <Backend B>
struct Histogram : torch::autograd::Function<Histogram<B>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& features, const Constants& constants) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, features, constants);
    return call_histogram<B>(features, constants);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    return {call_histogram_gradient<B>(grads[0], saved[0], restore(ctx, saved)), Tensor()};
  }
};

// A gradient that is to be differentiated again (create_graph): an error, never a number.
template <Backend B>
struct Once : torch::autograd::Function<Once<B>> {
  static Tensor forward(AutogradContext*, const Tensor& gradient, at::TensorList /*inputs*/) {
    return gradient.view_as(gradient);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(
        false, "the \"", B == Backend::kCpu ? "cpu" : "cuda",
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

// ---------------------------------------------------------------- on the Autograd key

template <Backend B>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> terms(
    const Tensor& features, at::TensorList rows, c10::SymInt num_classes,
    const OptionalTensor& prior, int64_t activation, int64_t impurity, double gini_weight,
    double kl_weight) {
  std::vector<Tensor> kept;
  const Constants constants{
      rows, {}, &kept, std::move(num_classes), prior, activation, impurity, gini_weight, kl_weight};
  if (!wants_gradient(features)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_terms<B>(features, constants);
  }
  const variable_list out = Terms<B>::apply(features, constants);
  return {out[0], out[1], out[2], std::move(kept)};
}

template <Backend B>
Tensor gradient(
    const Tensor& features, at::TensorList rows, at::TensorList kept,
    const OptionalTensor& grad_penalty, const OptionalTensor& grad_gini,
    const OptionalTensor& grad_kl, int64_t activation, double gini_weight, double kl_weight) {
  Constants c;
  c.rows = rows;
  c.kept = kept;
  c.activation = activation;
  c.gini_weight = gini_weight;
  c.kl_weight = kl_weight;
  Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = call_gradient<B>(features, grad_penalty, grad_gini, grad_kl, c);
  }
  const Tensor none;
  return once<B>(
      result,
      {features, grad_penalty.value_or(none), grad_gini.value_or(none), grad_kl.value_or(none)});
}

template <Backend B>
Tensor histogram(
    const Tensor& features, at::TensorList rows, c10::SymInt num_classes, int64_t activation) {
  Constants c;
  c.rows = rows;
  c.num_classes = std::move(num_classes);
  c.activation = activation;
  if (wants_gradient(features)) return Histogram<B>::apply(features, c);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_histogram<B>(features, c);
}

template <Backend B>
Tensor histogram_gradient(
    const Tensor& grad, const Tensor& features, at::TensorList rows, int64_t activation) {
  Constants c;
  c.rows = rows;
  c.activation = activation;
  Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = call_histogram_gradient<B>(grad, features, c);
  }
  return once<B>(result, {grad, features});
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
