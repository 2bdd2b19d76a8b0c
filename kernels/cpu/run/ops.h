// The ops of a program, as what runs them reads them.
#pragma once

#include <cstdint>
#include <vector>

namespace hag {

// A read-only array that somebody else owns.
template <class T>
struct View {
  const T *data = nullptr;
  int64_t size = 0;
  const T &operator[](int64_t i) const { return data[i]; }
};

// Ops in tiles, see Program, in Python.
struct Ops {
  View<int64_t> tile_ptr, op_ptr;
  View<int32_t> source, target;
  View<int32_t> tile_scratch;  // scratch rows of each tile

  int64_t num_tiles() const { return tile_ptr.size - 1; }
};

// The same ops in an order of their own within each tile, see op_order.h.
struct OpOrder {
  std::vector<int64_t> op_ptr;  // empty: the program's own order
  std::vector<int32_t> source, target;
};

}  // namespace hag
