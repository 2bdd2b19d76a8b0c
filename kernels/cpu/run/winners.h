// Max and min with the source that wins, and the gradient, on the CPU. The arithmetic is in
// winner_rows.h.
#pragma once

#include "run/aggregate.h"
#include "run/winners_abi.h"

namespace hag {

struct WinnerArguments {
  const void *x;  // contiguous [batch, num_src, width]
  void *y;        // [batch, num_dst, width]
  int64_t *winner;
  int64_t batch, width, x_rows, y_rows;
  int dtype, threads;
  bool largest, last;
};

// See HagWinners.
void winners(const Program &program, const WinnerArguments &arguments);

// out[b, winner[b, i, f], f] += grad[b, i, f], in the order of the rows i; a winner that is no row
// of out is passed over. float32 or float64, contiguous: out [batch, num_rows, width], the others
// [batch, num_winners, width].
void add_to_winners(const void *grad, const int64_t *winner, void *out, int64_t batch,
                    int64_t num_winners, int64_t num_rows, int64_t width, int dtype, int threads);

}  // namespace hag
