// Cutting a graph's rows into pieces of work, and long rows into parts.
#pragma once

#include <cstdint>
#include <vector>

#include "program_arrays.h"
#include "threads.h"

namespace hag {

constexpr int64_t kPiecesPerThread = 16;

// Runs body(0) .. body(count - 1), in any order, on this many threads.
template <class Body>
void share(int threads, int64_t count, const Body &body) {
  Counter counter(count, 1, threads);
  in_parallel(threads, [&](int thread) {
    counter.share(thread, [&](int64_t item, int64_t) { body(item); });
  });
}

// The first row of each piece of a graph that is cut by slots and rows.
inline std::vector<int64_t> cut_rows(const int64_t *row_ptr, int64_t num_rows, int64_t pieces) {
  std::vector<int64_t> first(pieces + 1, num_rows);
  const int64_t work = row_ptr[num_rows] + num_rows;
  int64_t row = 0;
  for (int64_t p = 0; p < pieces; ++p) {
    int64_t low = row, high = num_rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if ((row_ptr[middle] + middle) * pieces < work * p) low = middle + 1;
      else high = middle;
    }
    first[p] = row = low;
  }
  return first;
}

// Rows longer than kHubLength and the parts they are summed in: a matter of the graph alone, so
// that results do not depend on the number of threads.
struct Hubs {
  std::vector<int32_t> row;
  std::vector<int64_t> ptr{0};
  struct Part {
    int64_t row, begin, end;
  };
  std::vector<Part> parts;

  Hubs(const int64_t *row_ptr, int64_t num_rows) {
    if (row_ptr[num_rows] <= kHubLength) return;
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t begin = row_ptr[i], length = row_ptr[i + 1] - begin;
      if (length <= kHubLength) continue;
      const int64_t count = (length + kHubPart - 1) / kHubPart;
      for (int64_t p = 0; p < count; ++p)
        parts.push_back({i, begin + length * p / count, begin + length * (p + 1) / count});
      row.push_back(static_cast<int32_t>(i));
      ptr.push_back(static_cast<int64_t>(parts.size()));
    }
  }
};

}  // namespace hag
