// What rows of memory hold: a fingerprint, by which an array that comes back is known, and whether
// some are copies of others.
#pragma once

#include <cstdint>

namespace hag {

// 64 bits of `rows` rows of `row_bytes` bytes, `row_stride` bytes apart. Depends on every byte, on
// their order and on the shape; the same for any number of threads. Not made against adversaries.
uint64_t checksum(const void *data, int64_t rows, int64_t row_bytes, int64_t row_stride,
                  int threads);

// Whether every `step`-th of `rows` rows holds the same bytes as the row `first[i]`. Ends at the
// first that does not. Every `first[i]` is a row.
bool rows_alike(const void *data, const int32_t *first, int64_t rows, int64_t row_bytes,
                int64_t row_stride, int64_t step, int threads);

}  // namespace hag
