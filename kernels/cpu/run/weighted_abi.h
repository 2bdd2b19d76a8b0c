// What the instruction-set files and weighted.cpp agree on, under the rules of tile_abi.h. The
// graph is a CSR by row: slot k of row i is an edge between row i and column col[k].
#pragma once

#include <stdint.h>

// y_i = t_i * (sum over slots k of row i of w_k s_j x_j, + loop_i s_i x_i) for one matrix. Weights
// and scales are in the accumulator's dtype. y is contiguous. Long rows (hubs) are sums of partial
// sums, which `part` has written before.
struct HagWeightedSum {
  const int64_t *row_ptr;
  const int32_t *col;
  const void *weight, *loop_weight;         // loop_weight: rows 0..num_loops - 1; null: no loops
  const void *source_scale, *target_scale;  // may be null
  const void *x;
  void *y;
  const void *partial;     // [hub_ptr[num_hubs], width], in the accumulator's dtype
  const int32_t *hub_row;  // increasing
  const int64_t *hub_ptr;  // the partial sums of each hub
  int64_t num_hubs, num_edges, num_loops, width, x_row_stride;
  int32_t skip_loops, dtype;  // skip_loops: slots with col[k] == i do not count
};

// out_k = s_j t_i <a_j, b_i>, summed over a batch of matrices that are contiguous; j = col[k].
struct HagEdgeDot {
  const int64_t *row_ptr;
  const int32_t *col;
  const void *source_scale, *target_scale;  // may be null
  const void *a, *b;
  void *out;  // in the accumulator's dtype
  int64_t batch, width, a_batch_stride, b_batch_stride;
  int32_t skip_loops, dtype;
};

#define HAG_DECLARE_WEIGHTED(ISA)                                                           \
  extern "C" {                                                                              \
  void hag_weighted_rows_##ISA(const HagWeightedSum *args, int64_t first, int64_t last);    \
  void hag_weighted_part_##ISA(const HagWeightedSum *args, int64_t row, int64_t begin,      \
                               int64_t end, void *out);                                     \
  void hag_edge_dot_##ISA(const HagEdgeDot *args, int64_t row, int64_t begin, int64_t end); \
  void hag_loop_dot_##ISA(const HagEdgeDot *args, int64_t first, int64_t last, void *out);  \
  }

HAG_DECLARE_WEIGHTED(baseline)
HAG_DECLARE_WEIGHTED(avx2)
HAG_DECLARE_WEIGHTED(avx512)
