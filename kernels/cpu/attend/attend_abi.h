// What the instruction-set files and attend.cpp agree on, under the rules of run/tile_abi.h.
#pragma once

#include <stdint.h>

#include "run/tile_abi.h"

// Python numbers them in this order, too.
enum HagScore { HAG_SCORE_GIVEN, HAG_SCORE_SUM, HAG_SCORE_VECTOR, HAG_SCORE_DOT, HAG_NUM_SCORES };
enum HagNormalise {
  HAG_NORMALISE_SOFTMAX,
  HAG_NORMALISE_TANH,
  HAG_NORMALISE_NONE,
  HAG_NUM_NORMALISES
};

// Attention over a graph, or its gradients. All features are contiguous float32 or float64; those
// that a call has no use for are null. Slot k of row i is an edge between row i and column col[k].
// In a pass by source the rows are the sources: `place` has the place of each slot in the graph's
// own order, by target. Arrays of the scratch kind have that order, the user's have that of
// `order`.
struct HagAttend {
  const int64_t *row_ptr;
  const int32_t *col;
  const int32_t *place;                            // null: the slots are in the graph's own order
  const int64_t *order;                            // null: the user's order is the graph's
  int64_t num_rows, num_cols, num_edges, longest;  // longest: a row that is no hub
  int64_t heads, width, key_width, edge_width, block;
  double slope;
  int32_t score, normalise, dtype;

  const void *value, *key, *query, *weight, *bias, *edges, *edge_query, *projection, *mask;
  // Forward.
  void *y;     // [num_dst, heads, width + edge_width if edge_query]
  void *kept;  // [num_dst, 2, heads]: the largest score, 1 / the sum of exponentials
  // Backward.
  const void *grad, *grad_edges;  // by y: [num_dst, heads, width], [num_dst, heads, edge_width]
  const void *inner;  // <grad, y> where y is of more edges than these, [num_dst, heads]; or null
  void *by_score, *shares;  // [E, heads]: gradients by scores; what values count
  void *d_bias, *d_edges, *d_mask;
};

// Rows first to last of a graph, without those longer than `longest`; or, where begin is not
// negative, the slots begin to end of row `first`.
struct HagAttendRange {
  int64_t first, last, begin, end;
};

// Where a range puts its sums, row by row: each is written, but the last two are added to.
struct HagAttendSums {
  void *first, *second;           // by source: value, key; by target: query, edge_query
  void *d_weight, *d_projection;  // of a piece of work
};

#define HAG_DECLARE_ATTEND(ISA)                                                                    \
  extern "C" {                                                                                     \
  void hag_attend_rows_##ISA(const HagAttend *args, int64_t first, int64_t last, void *scratch);   \
  void hag_attend_scores_##ISA(const HagAttend *args, int64_t row, int64_t begin, int64_t end,     \
                               void *scores, void *largest, void *scratch);                        \
  void hag_attend_part_##ISA(const HagAttend *args, int64_t row, int64_t begin, int64_t end,       \
                             void *scores, const void *largest, void *total, void *sums,           \
                             void *scratch);                                                       \
  void hag_attend_edges_##ISA(const HagAttend *args, int64_t first, int64_t last, void *scratch);  \
  void hag_attend_part_edges_##ISA(const HagAttend *args, int64_t row, int64_t begin, int64_t end, \
                                   void *edges, void *inner, void *scratch);                       \
  void hag_attend_part_by_scores_##ISA(const HagAttend *args, int64_t begin, int64_t end,          \
                                       void *edges, const void *inner, void *scratch);             \
  void hag_attend_by_value_##ISA(const HagAttend *args, const HagAttendRange *range,               \
                                 const HagAttendSums *sums, void *scratch);                        \
  void hag_attend_less_inner_##ISA(const HagAttend *args, int64_t first, int64_t last,             \
                                   void *scratch);                                                 \
  void hag_attend_by_source_##ISA(const HagAttend *args, const HagAttendRange *range,              \
                                  const HagAttendSums *sums, void *scratch);                       \
  void hag_attend_by_target_##ISA(const HagAttend *args, const HagAttendRange *range,              \
                                  const HagAttendSums *sums, void *scratch);                       \
  void hag_attend_dot_##ISA(const HagAttend *args, const HagAttendRange *range, void *out,         \
                            void *scratch);                                                        \
  }

HAG_DECLARE_ATTEND(baseline)
HAG_DECLARE_ATTEND(avx2)
HAG_DECLARE_ATTEND(avx512)
