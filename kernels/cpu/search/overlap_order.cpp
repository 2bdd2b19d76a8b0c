#include "search/overlap_order.h"

#include <algorithm>
#include <cmath>

#include "interrupt.h"

namespace hag {

namespace {

constexpr size_t kStep = 8;           // rows that are chosen at a time
constexpr size_t kLeading = 64;       // rows that lead when the bar is set, and
constexpr size_t kMostLeading = 512;  // when it is set anew
constexpr int64_t kSample = 64;

int64_t length(const Csr &graph, int64_t row) {
  return graph.row_ptr[row + 1] - graph.row_ptr[row];
}

int64_t stride(const Csr &graph, int64_t row) {
  return std::max<int64_t>(1, length(graph, row) / kSample);
}

}  // namespace

OverlapOrder::OverlapOrder(const Csr &graph, const Csr &targets_of)
    : graph_(graph), targets_of_(targets_of), row_(graph.num_dst) {
  for (int64_t v = 0; v < graph.num_dst; ++v)
    row_[v] = {kTaken, -1.0f / std::sqrt(1.0f + static_cast<float>(length(graph, v)))};
}

void OverlapOrder::apply(std::vector<int32_t> &rows, int64_t tile_rows) {
  Pace pace;
  for (const int32_t v : rows) row_[v].shared = 0;
  std::vector<int32_t> order;
  order.reserve(rows.size());
  for (size_t next = 0; order.size() < rows.size();) {
    const size_t end = std::min(rows.size(), order.size() + static_cast<size_t>(tile_rows));
    while (order.size() < end) {
      pace(kSample * static_cast<int64_t>(kStep));  // rows are sampled, and so are their targets
      choose(std::min(kStep, end - order.size()));
      if (leading_.empty()) {
        while (row_[rows[next]].shared == kTaken) ++next;
        take(rows[next], order);
        continue;
      }
      const size_t size = std::min({kStep, leading_.size(), end - order.size()});
      // Taking a row adds to leading_.
      for (const int32_t v : std::vector<int32_t>(leading_.begin(), leading_.begin() + size))
        take(v, order);
    }
    for (const int32_t v : touched_)
      if (row_[v].shared != kTaken) row_[v].shared = 0;
    touched_.clear();
    leading_.clear();
    bar_ = kNoBar;
  }
  rows = std::move(order);
}

bool OverlapOrder::better(int32_t a, int32_t b) const {
  const float x = row_[a].value(), y = row_[b].value();
  return x != y ? x < y : a < b;
}

void OverlapOrder::drop_taken(std::vector<int32_t> &rows) const {
  rows.erase(std::remove_if(rows.begin(), rows.end(),
                            [this](int32_t v) { return row_[v].shared == kTaken; }),
             rows.end());
}

// Moves the best of the touched rows, at most `most`, to the front of leading_. Values only fall
// while a tile fills, so rows above the bar need not be looked at as long as enough are below it.
void OverlapOrder::choose(size_t most) {
  auto better_of = [this](int32_t a, int32_t b) { return better(a, b); };
  drop_taken(leading_);
  if (leading_.size() < most && bar_ < kNoBar) {
    drop_taken(touched_);
    leading_ = touched_;
    bar_ = kNoBar;
  }
  if (leading_.size() > kMostLeading) {
    const auto last = leading_.begin() + kLeading;
    std::nth_element(leading_.begin(), last, leading_.end(), better_of);
    bar_ = row_[*last].value();
    leading_.erase(std::remove_if(leading_.begin(), leading_.end(),
                                  [this](int32_t v) { return row_[v].value() > bar_; }),
                   leading_.end());
  }
  most = std::min(most, leading_.size());
  std::partial_sort(leading_.begin(), leading_.begin() + static_cast<int64_t>(most), leading_.end(),
                    better_of);
}

void OverlapOrder::take(int32_t row, std::vector<int32_t> &order) {
  row_[row].shared = kTaken;
  order.push_back(row);
  const int64_t step = stride(graph_, row);
  for (int64_t e = graph_.row_ptr[row]; e < graph_.row_ptr[row + 1]; e += step)
    touch_targets(graph_.col[e]);
  if (row < targets_of_.num_dst) touch_targets(row);  // as if it had a self-loop
}

void OverlapOrder::touch_targets(int32_t source) {
  const int64_t step = stride(targets_of_, source);
  for (int64_t e = targets_of_.row_ptr[source]; e < targets_of_.row_ptr[source + 1]; e += step) {
    const int32_t v = targets_of_.col[e];
    Waiting &waiting = row_[v];
    if (waiting.shared == kTaken) continue;
    const float before = waiting.value();
    if (waiting.shared++ == 0) touched_.push_back(v);
    if (before > bar_ && waiting.value() <= bar_) leading_.push_back(v);
  }
}

}  // namespace hag
