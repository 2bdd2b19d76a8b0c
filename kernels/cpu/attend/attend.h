// Attention over a CSR graph, its gradients, and dot products of heads, on the CPU: checks, threads
// and long rows. The arithmetic is in attend_rows.h.
#pragma once

#include <cstdint>

#include "attend/attend_abi.h"

namespace hag {

// Numbers and how many there are, as a caller states it.
struct Numbers {
  void *data = nullptr;
  int64_t count = 0;
};

// In the order of the Python side's `Tensors`.
struct AttendTensors {
  Numbers value, key, query, weight, bias, edges, edge_query, projection, mask;
};

// The same edges by source: the place of each of these by target is `place`.
struct Reverse {
  const int64_t *row_ptr;
  const int32_t *col, *place;
};

struct AttendGrads {
  Numbers value, edges;  // by the first numbers of each head of y, and by its last
  Numbers inner;         // <grad, y>, where y is of more edges than the graph's; or null
};

// The graph and the sizes stand in `shape`, the rest of which is filled here. The graph must be
// valid: a HAG's is. All functions throw std::invalid_argument where what is given has other sizes.
void attend(const HagAttend &shape, const AttendTensors &tensors, const Numbers &y,
            const Numbers &kept, int threads);

// `out` is by the tensors; what is null there is not needed. Gradients by value and key may be
// written over these, unless a query is one of them; both may be one.
void attend_backward(const HagAttend &shape, const Reverse &reverse, const AttendTensors &tensors,
                     const Numbers &kept, const AttendGrads &grads, const AttendTensors &out,
                     int threads);

// out[e, h] = <a_jh, b_ih>; a and b have `width` numbers a head.
void head_dot(const HagAttend &shape, const Numbers &a, const Numbers &b, const Numbers &out,
              int threads);

}  // namespace hag
