#include "search/overlap_order.h"

#include <algorithm>
#include <cmath>

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

OverlapOrder::OverlapOrder(const Csr &graph, const Csr &targets_of, std::vector<int32_t> rows)
    : graph_(graph),
      targets_of_(targets_of),
      rows_(std::move(rows)),
      row_(graph.num_dst, Waiting{kTaken, -1.0f}) {
  for (const int32_t v : rows_)
    row_[v] = {0, -1.0f / std::sqrt(1.0f + static_cast<float>(length(graph, v)))};
}

std::vector<int32_t> OverlapOrder::fill(const TileSize &size) {
  while (next_ < rows_.size() && !is_left(rows_[next_])) ++next_;
  if (next_ == rows_.size()) return {};
  return fill(rows_[next_], size);
}

std::vector<int32_t> OverlapOrder::fill(int32_t start, const TileSize &size) {
  std::vector<int32_t> tile, step;
  int64_t edges = 0;
  // The row that comes where none shares anything: the next one that is left, round and round.
  size_t next = std::lower_bound(rows_.begin(), rows_.end(), start) - rows_.begin();
  size_t looked_at = 0;
  for (bool full = false; !full;) {
    pace_(kSample * static_cast<int64_t>(kStep));  // rows are sampled, and so are their targets
    const size_t most = static_cast<size_t>(size.rows) - tile.size();
    choose(std::min(kStep, most));
    // Taking a row adds to leading_.
    step.assign(leading_.begin(), leading_.begin() + std::min({kStep, leading_.size(), most}));
    if (step.empty()) {
      for (; looked_at < rows_.size() && !is_left(rows_[next]); ++looked_at)
        if (++next == rows_.size()) next = 0;
      if (looked_at == rows_.size()) break;
      step.assign(1, rows_[next]);
    }
    for (const int32_t v : step) {
      edges += length(graph_, v);
      full = edges > size.edges && !tile.empty();
      if (full) break;
      take(v, tile);
    }
    full = full || static_cast<int64_t>(tile.size()) == size.rows;
  }
  for (const int32_t v : touched_)
    if (is_left(v)) row_[v].shared = 0;
  touched_.clear();
  leading_.clear();
  bar_ = kNoBar;
  return tile;
}

void OverlapOrder::give_back(const std::vector<int32_t> &tile) {
  for (const int32_t v : tile) row_[v].shared = 0;
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

void OverlapOrder::take(int32_t row, std::vector<int32_t> &tile) {
  row_[row].shared = kTaken;
  tile.push_back(row);
  const int64_t step = stride(graph_, row);
  for (int64_t e = graph_.row_ptr[row]; e < graph_.row_ptr[row + 1]; e += step)
    touch_targets(graph_.col[e]);
  if (row < targets_of_.num_dst) touch_targets(row);  // as if it had a self-loop
}

// Written without branches: which rows are taken, new or leading cannot be guessed.
void OverlapOrder::touch_targets(int32_t source) {
  const int64_t step = stride(targets_of_, source);
  const int64_t begin = targets_of_.row_ptr[source], end = targets_of_.row_ptr[source + 1];
  const size_t touches = static_cast<size_t>((end - begin + step - 1) / step);
  size_t touched = touched_.size(), leading = leading_.size();
  touched_.resize(touched + touches + 1);
  leading_.resize(leading + touches + 1);
  const float bar = bar_;
  for (int64_t e = begin; e < end; e += step) {
    const int32_t v = targets_of_.col[e];
    Waiting &waiting = row_[v];
    const float before = waiting.value();
    touched_[touched] = leading_[leading] = v;
    touched += waiting.shared == 0;
    waiting.shared += waiting.shared != kTaken;
    leading += (before > bar) & (waiting.value() <= bar);
  }
  touched_.resize(touched);
  leading_.resize(leading);
}

}  // namespace hag
