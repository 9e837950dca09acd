#include "cpu/row_plan.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/checks.h"

namespace discfused::cpu {

namespace {

template <typename Acc>
using Chunk = typename RowPlan<Acc>::Chunk;

template <typename Acc>
void split_into_chunks(RowPlan<Acc>& plan) {
  plan.chunks.resize((plan.rows + kChunkRows - 1) / kChunkRows);
  for (Chunk<Acc>& chunk : plan.chunks) {
    const int64_t first = (&chunk - plan.chunks.data()) * kChunkRows;
    chunk.rows = std::min(kChunkRows, plan.rows - first);
  }
}

// Marks the first run of every slot, and numbers the slots that have one.
template <typename Acc>
void open_slots(RowPlan<Acc>& plan, int64_t S) {
  std::vector<int32_t> number(S, -1);
  for (Chunk<Acc>& chunk : plan.chunks) {
    for (Run& run : chunk.runs) {
      run.opens = number[run.slot] < 0;
      if (run.opens) {
        number[run.slot] = static_cast<int32_t>(plan.slots.size());
        plan.slots.push_back(run.slot);
      }
      run.slot = number[run.slot];
    }
  }
}

// slot [N] holds -1 for a row that does not count.
template <typename Acc>
RowPlan<Acc> plan_hard(const int32_t* slot, const Acc* row_weight, int64_t N, int64_t S) {
  // A stable counting sort: equal slots keep the order of their rows.
  std::vector<int64_t> place(S + 1);
  for (int64_t i = 0; i < N; ++i) {
    TORCH_CHECK_INDEX(slot[i] < S, "slot[", i, "] is ", slot[i], ", expected less than ", S);
    if (slot[i] >= 0) ++place[slot[i] + 1];
  }
  for (int64_t s = 0; s < S; ++s) place[s + 1] += place[s];

  RowPlan<Acc> plan;
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

  split_into_chunks(plan);
  int64_t k = 0;
  for (Chunk<Acc>& chunk : plan.chunks) {
    chunk.runs.reserve(chunk.rows);
    for (int64_t row = 0; row < chunk.rows; ++row, ++k) {
      const int32_t s = slot[plan.order[k]];
      if (row == 0 || chunk.runs.back().slot != s) chunk.runs.push_back({row, row, s, false});
      ++chunk.runs.back().end;
    }
  }
  open_slots(plan, S);
  return plan;
}

template <typename Acc>
struct SoftLabels {
  const Acc* data;  // [N, S]
  int64_t row_stride, column_stride, S;
};

// Collects the nonzero labels of a chunk and sorts them by slot. Its memory serves chunk after
// chunk.
template <typename Acc>
class ChunkSorter {
 public:
  explicit ChunkSorter(const SoftLabels<Acc>& labels) : labels_(labels), place_(labels.S) {}

  void fill(const int64_t* order, Chunk<Acc>& chunk) {
    entries_.clear();
    std::fill(place_.begin(), place_.end(), 0);
    for (int64_t row = 0; row < chunk.rows; ++row) {
      const Acc* label = labels_.data + order[row] * labels_.row_stride;
      for (int64_t s = 0; s < labels_.S; ++s) {
        const Acc weight = label[s * labels_.column_stride];
        if (weight == 0) continue;
        entries_.push_back({weight, static_cast<int32_t>(s), static_cast<uint8_t>(row)});
        ++place_[s];
      }
    }
    int64_t next = 0;
    for (int64_t s = 0; s < labels_.S; ++s) {
      const int64_t count = place_[s];
      place_[s] = next;
      next += count;
      if (count > 0) chunk.runs.push_back({place_[s], next, static_cast<int32_t>(s), false});
    }
    chunk.entry_row.resize(entries_.size());
    chunk.entry_weight.resize(entries_.size());
    for (const Entry& entry : entries_) {
      const int64_t at = place_[entry.slot]++;
      chunk.entry_row[at] = entry.row;
      chunk.entry_weight[at] = entry.weight;
    }
  }

 private:
  struct Entry {
    Acc weight;
    int32_t slot;
    uint8_t row;
  };
  SoftLabels<Acc> labels_;
  std::vector<int64_t> place_;
  std::vector<Entry> entries_;
};

// A row counts unless its weight is 0.
template <typename Acc>
RowPlan<Acc> plan_soft(const SoftLabels<Acc>& labels, const Acc* row_weight, int64_t N) {
  RowPlan<Acc> plan;
  plan.one_entry_per_row = false;
  plan.order.reserve(N);
  for (int64_t i = 0; i < N; ++i) {
    if (row_weight[i] == 0) continue;
    plan.order.push_back(i);
    plan.weight.push_back(row_weight[i]);
  }
  plan.rows = static_cast<int64_t>(plan.order.size());
  for (int64_t i = 0; i < N; ++i) {
    if (row_weight[i] == 0) plan.order.push_back(i);
  }

  split_into_chunks(plan);
  const int64_t chunks = static_cast<int64_t>(plan.chunks.size());
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    ChunkSorter<Acc> sorter(labels);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      sorter.fill(plan.order.data() + chunk * kChunkRows, plan.chunks[chunk]);
    }
  });
  open_slots(plan, labels.S);
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
    const SoftLabels<Acc> labels{soft->const_data_ptr<Acc>(), soft->stride(0), soft->stride(1), S};
    return plan_soft(labels, weight.const_data_ptr<Acc>(), N);
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
