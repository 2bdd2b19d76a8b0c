// An order of a large graph's rows in which those of a tile share sources.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "graph.h"

namespace hag {

// Orders rows so that those of a tile have many sources in common: a tile starts with the first
// row that is left and takes, a few at a time, the rows that share most with it, for their length.
// Long rows and sources of many rows are sampled, so that the work is linear in the edges.
class OverlapOrder {
 public:
  // `targets_of`: the reversed graph.
  OverlapOrder(const Csr &graph, const Csr &targets_of);

  void apply(std::vector<int32_t> &rows, int64_t tile_rows);

 private:
  // A row by what it shares with the tile, for its length: the least value is best.
  struct Waiting {
    int32_t shared;  // kTaken: not waiting
    float weight;    // below 0

    float value() const { return static_cast<float>(shared) * weight; }
  };
  static constexpr int32_t kTaken = -1;
  static constexpr float kNoBar = -std::numeric_limits<float>::min();  // all touched rows lead

  void take(int32_t row, std::vector<int32_t> &order);
  void touch_targets(int32_t source);
  void choose(size_t most);
  void drop_taken(std::vector<int32_t> &rows) const;
  bool better(int32_t a, int32_t b) const;

  const Csr &graph_, &targets_of_;
  std::vector<Waiting> row_;
  std::vector<int32_t> touched_;  // rows that share anything with the tile
  std::vector<int32_t> leading_;  // those of them with a value of at most bar_
  float bar_ = kNoBar;
};

}  // namespace hag
