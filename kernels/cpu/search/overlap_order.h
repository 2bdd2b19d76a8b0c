// An order of a large graph's rows in which those of a tile share sources.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "graph.h"
#include "interrupt.h"

namespace hag {

// How large a tile may be.
struct TileSize {
  int64_t rows, edges;
};

// Orders rows so that those of a tile have many sources in common: a tile starts with a given row
// and takes, a few at a time, the rows that share most with it, for their length. Long rows and
// sources of many rows are sampled, so that the work is linear in the edges of the tiles filled.
class OverlapOrder {
 public:
  // `targets_of`: the reversed graph. `rows`, in increasing order, are those to order.
  OverlapOrder(const Csr &graph, const Csr &targets_of, std::vector<int32_t> rows);

  bool is_left(int32_t row) const { return row_[row].shared != kTaken; }

  // The next tile of rows that are left, from row `start` on; it must be left.
  std::vector<int32_t> fill(int32_t start, const TileSize &size);

  // The same from the first row that is left on; empty where none is.
  std::vector<int32_t> fill(const TileSize &size);

  // Makes the rows of a tile that was filled from a given row ones that are left.
  void give_back(const std::vector<int32_t> &tile);

 private:
  // A row by what it shares with the tile, for its length: the least value is best.
  struct Waiting {
    int32_t shared;  // kTaken: not waiting
    float weight;    // below 0

    float value() const { return static_cast<float>(shared) * weight; }
  };
  static constexpr int32_t kTaken = -1;                                // the value is then above 0
  static constexpr float kNoBar = -std::numeric_limits<float>::min();  // all touched rows lead

  void take(int32_t row, std::vector<int32_t> &tile);
  void touch_targets(int32_t source);
  void choose(size_t most);
  void drop_taken(std::vector<int32_t> &rows) const;
  bool better(int32_t a, int32_t b) const;

  const Csr &graph_, &targets_of_;
  const std::vector<int32_t> rows_;
  size_t next_ = 0;  // of rows_: none before it is left
  std::vector<Waiting> row_;
  std::vector<int32_t> touched_;  // rows that share anything with the tile
  std::vector<int32_t> leading_;  // those of them with a value of at most bar_
  float bar_ = kNoBar;
  Pace pace_;
};

}  // namespace hag
