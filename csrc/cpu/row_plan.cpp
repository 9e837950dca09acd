#include "cpu/row_plan.h"

#include <ATen/Parallel.h>

#include "cpu/checks.h"

namespace discfused::cpu {

namespace {

int64_t chunks_of(int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }

// Marks the first run of every slot and lists the slots without one.
template <typename Acc>
void open_slots(RowPlan<Acc>& plan, int64_t S) {
  std::vector<bool> opened(S);
  for (Run& run : plan.runs) {
    run.opens = !opened[run.slot];
    opened[run.slot] = true;
  }
  for (int64_t s = 0; s < S; ++s) {
    if (!opened[s]) plan.unused_slots.push_back(static_cast<int32_t>(s));
  }
}

// slot [N] holds -1 for a row that does not count.
template <typename Acc>
RowPlan<Acc> plan_hard(const int32_t* slot, const Acc* row_weight, int64_t N, int64_t S) {
  RowPlan<Acc> plan;
  // A stable counting sort: equal slots keep the order of their rows, whatever the thread count.
  std::vector<int64_t> place(S + 1);
  for (int64_t i = 0; i < N; ++i) {
    TORCH_CHECK(slot[i] < S, "slot[", i, "] is ", slot[i], ", expected less than ", S);
    if (slot[i] >= 0) ++place[slot[i] + 1];
  }
  for (int64_t s = 0; s < S; ++s) place[s + 1] += place[s];
  plan.rows = place[S];

  plan.order.resize(N);
  plan.weight.resize(plan.rows);
  int64_t rest = plan.rows;
  for (int64_t i = 0; i < N; ++i) {
    if (slot[i] < 0) {
      plan.order[rest++] = i;
    } else {
      const int64_t k = place[slot[i]]++;
      plan.order[k] = i;
      plan.weight[k] = row_weight[i];
    }
  }

  // Every row is an entry of its own.
  plan.entry_weight = plan.weight;
  plan.entry_row.resize(plan.rows);
  plan.first_run.reserve(chunks_of(plan.rows) + 1);
  for (int64_t k = 0; k < plan.rows; ++k) {
    const int32_t s = slot[plan.order[k]];
    plan.entry_row[k] = static_cast<uint8_t>(k % kChunkRows);
    const bool chunk_begins = k % kChunkRows == 0;
    if (chunk_begins) plan.first_run.push_back(static_cast<int64_t>(plan.runs.size()));
    if (chunk_begins || plan.runs.back().slot != s) plan.runs.push_back({k, k, s, false});
    ++plan.runs.back().end;
  }
  plan.first_run.push_back(static_cast<int64_t>(plan.runs.size()));
  open_slots(plan, S);
  return plan;
}

// A row counts unless its weight is 0.
template <typename Acc>
RowPlan<Acc> plan_soft(
    const Acc* soft, int64_t row_stride, int64_t column_stride, const Acc* row_weight, int64_t N,
    int64_t S) {
  RowPlan<Acc> plan;
  plan.one_entry_per_row = false;
  plan.order.reserve(N);
  for (int64_t i = 0; i < N; ++i) {
    if (row_weight[i] != 0) plan.order.push_back(i);
  }
  plan.rows = static_cast<int64_t>(plan.order.size());
  for (int64_t i = 0; i < N; ++i) {
    if (row_weight[i] == 0) plan.order.push_back(i);
  }
  plan.weight.reserve(plan.rows);
  for (int64_t k = 0; k < plan.rows; ++k) plan.weight.push_back(row_weight[plan.order[k]]);

  const int64_t chunks = chunks_of(plan.rows);
  const auto for_each_entry = [&](int64_t chunk, auto&& body) {
    const int64_t first = chunk * kChunkRows;
    for (int64_t r = 0; r < plan.chunk_rows(chunk); ++r) {
      const Acc* row = soft + plan.order[first + r] * row_stride;
      for (int64_t s = 0; s < S; ++s) {
        const Acc weight = row[s * column_stride];
        if (weight != 0) body(s, static_cast<uint8_t>(r), weight);
      }
    }
  };

  // Twice over the labels: to learn where each chunk's runs and entries go, then to fill them in.
  std::vector<int64_t> first_entry(chunks + 1);
  plan.first_run.assign(chunks + 1, 0);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> count(S);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      count.assign(S, 0);
      for_each_entry(chunk, [&](int64_t s, uint8_t, Acc) { ++count[s]; });
      for (int64_t s = 0; s < S; ++s) {
        first_entry[chunk + 1] += count[s];
        plan.first_run[chunk + 1] += count[s] != 0;
      }
    }
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    first_entry[chunk + 1] += first_entry[chunk];
    plan.first_run[chunk + 1] += plan.first_run[chunk];
  }
  plan.runs.resize(plan.first_run[chunks]);
  plan.entry_row.resize(first_entry[chunks]);
  plan.entry_weight.resize(first_entry[chunks]);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> place(S);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      place.assign(S, 0);
      for_each_entry(chunk, [&](int64_t s, uint8_t, Acc) { ++place[s]; });
      int64_t entry = first_entry[chunk];
      Run* run = plan.runs.data() + plan.first_run[chunk];
      for (int64_t s = 0; s < S; ++s) {
        const int64_t count = place[s];
        place[s] = entry;
        if (count != 0) *run++ = {entry, entry + count, static_cast<int32_t>(s), false};
        entry += count;
      }
      for_each_entry(chunk, [&](int64_t s, uint8_t row, Acc weight) {
        plan.entry_row[place[s]] = row;
        plan.entry_weight[place[s]++] = weight;
      });
    }
  });
  open_slots(plan, S);
  return plan;
}

}  // namespace

template <typename Acc>
RowPlan<Acc> make_plan(
    const at::Tensor& slot, const at::Tensor& row_weight, const std::optional<at::Tensor>& soft,
    int64_t N, int64_t S) {
  check_shape(row_weight, {N}, "row_weight");
  const at::Tensor weight = row_weight.contiguous();
  if (soft) {
    check_shape(*soft, {N, S}, "soft");
    return plan_soft(
        soft->const_data_ptr<Acc>(), soft->stride(0), soft->stride(1),
        weight.const_data_ptr<Acc>(), N, S);
  }
  check_shape(slot, {N}, "slot");
  const at::Tensor slots = slot.contiguous();
  return plan_hard(slots.const_data_ptr<int32_t>(), weight.const_data_ptr<Acc>(), N, S);
}

template RowPlan<float> make_plan(
    const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, int64_t, int64_t);
template RowPlan<double> make_plan(
    const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, int64_t, int64_t);

}  // namespace discfused::cpu
