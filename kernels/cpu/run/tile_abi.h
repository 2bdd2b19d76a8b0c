// What the instruction-set files (isa_*.cpp) and aggregate.cpp agree on: plain structs, plain C
// entry points. Nothing inline and nothing of the standard library may come in here: an inline
// function compiled for AVX-512 and picked by the linker would crash older machines.
#pragma once

#include <stdint.h>

enum HagDtype { HAG_FLOAT32 = 0, HAG_FLOAT64 = 1, HAG_FLOAT16 = 2, HAG_BFLOAT16 = 3 };

// ENTRY(NAME, name) for each reducer, which `combine` (tile_rows.h) computes. Python numbers them
// in this order, too.
#define HAG_EVERY_REDUCER(ENTRY) ENTRY(SUM, sum) ENTRY(MAX, max) ENTRY(MIN, min)
#define HAG_CODE(NAME, name) HAG_##NAME,
enum HagReduce { HAG_EVERY_REDUCER(HAG_CODE) HAG_NUM_REDUCERS };
#undef HAG_CODE

enum HagLoops { HAG_LOOPS_NONE = 0, HAG_LOOPS_ADD = 1, HAG_LOOPS_FILL = 2 };

// One aggregation over one matrix: a program and the arrays it runs on. Rows of y and of the
// partial sums lie `width` apart, rows of x `x_row_stride`, all counted in elements.
struct HagAggregate {
  const int64_t *tile_ptr, *op_ptr;
  const int32_t *source, *target;
  const int32_t *tile_scratch;  // scratch rows of each tile
  const int32_t *hub_row;
  const int64_t *hub_ptr;
  int64_t prefetch_end;  // rows of x are fetched ahead for source[0..prefetch_end)
  int64_t num_dst;
  int64_t diagonal;
  const void *x;
  void *y;
  void *partial;  // in the accumulator's dtype, as are scratch and the scales
  const void *source_scale, *target_scale;
  int64_t width, x_row_stride;
  int64_t scratch_budget;  // bytes a tile's scratch should stay within
  int32_t dtype, reduce;
  int32_t beyond;  // the last-level cache does not hold x and y
  int32_t stream;  // whole rows of cache lines are written past the caches
};

// out_i = sum over j->i of [key_source_j == key_target_i] * v_j, over a CSR graph. Contiguous.
struct HagMaskedSum {
  const int64_t *row_ptr;
  const int32_t *col;
  const void *v;  // null: ones
  const void *key_source, *key_target;
  void *out;
  int64_t num_cols, width;
  int32_t loops, dtype;
};

#define HAG_DECLARE_AGGREGATE(ISA)                                                      \
  extern "C" {                                                                          \
  int64_t hag_scratch_bytes_##ISA(const HagAggregate *args, int64_t rows);              \
  void hag_aggregate_tile_##ISA(const HagAggregate *args, int64_t tile, void *scratch); \
  void hag_aggregate_hub_##ISA(const HagAggregate *args, int64_t hub);                  \
  void hag_masked_sum_##ISA(const HagMaskedSum *args, int64_t first, int64_t last);     \
  }

HAG_DECLARE_AGGREGATE(baseline)
HAG_DECLARE_AGGREGATE(avx2)
HAG_DECLARE_AGGREGATE(avx512)
