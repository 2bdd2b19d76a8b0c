// A fingerprint of memory: whether an array that comes back still holds what it held.
#pragma once

#include <cstdint>

namespace hag {

// 64 bits of `rows` rows of `row_bytes` bytes, `row_stride` bytes apart. Depends on every byte, on
// their order and on the shape; the same for any number of threads. Not made against adversaries.
uint64_t checksum(const void *data, int64_t rows, int64_t row_bytes, int64_t row_stride,
                  int threads);

}  // namespace hag
