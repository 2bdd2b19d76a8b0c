// What the instruction-set files and winners.cpp agree on, under the rules of tile_abi.h.
#pragma once

#include <stdint.h>

// Max or min of a program over one matrix, and the source that each value comes from. Of sources
// that tie the smallest wins, or the largest; among NaN too, which win over numbers.
struct HagWinners {
  const int64_t *tile_ptr, *op_ptr;
  const int32_t *source, *target;
  const int32_t *tile_scratch;  // scratch rows of each tile
  const int32_t *hub_row;
  const int64_t *hub_ptr;
  int64_t num_dst, diagonal;
  const void *x;     // rows `width` apart, as those of y, winner and the partial results
  void *y;           // 0 where a row has no source
  int64_t *winner;   // -1 there
  void *partial;     // values of the partial results, in the accumulator's dtype,
  void *partial_id;  // and their winners, in an integer of its size
  int64_t width;
  int32_t largest, last, dtype;  // largest: max; last: the largest source wins a tie
};

#define HAG_DECLARE_WINNERS(ISA)                                                   \
  extern "C" {                                                                     \
  int64_t hag_winner_bytes_##ISA(int64_t rows);                                    \
  void hag_winner_tile_##ISA(const HagWinners *args, int64_t tile, void *scratch); \
  void hag_winner_hub_##ISA(const HagWinners *args, int64_t hub);                  \
  }

HAG_DECLARE_WINNERS(baseline)
HAG_DECLARE_WINNERS(avx2)
HAG_DECLARE_WINNERS(avx512)
