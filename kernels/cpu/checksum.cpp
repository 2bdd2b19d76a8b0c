#include "checksum.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "threads.h"

namespace hag {

namespace {

constexpr int64_t kChunk = 1 << 18;  // bytes, summed apart from the others
constexpr uint64_t kSecret[4] = {0xA0761D6478BD642Full, 0xE7037ED1A0B428DBull,
                                 0x8EBC6AF09C88C6E3ull, 0x589965CC75374CC3ull};

uint64_t word(const unsigned char *p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Both halves of a 128-bit product, folded: the mixing step of wyhash.
uint64_t mix(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t sum_of(const unsigned char *p, int64_t bytes, uint64_t seed) {
  uint64_t lane[4] = {seed ^ kSecret[0], seed ^ kSecret[1], seed ^ kSecret[2], seed ^ kSecret[3]};
  const int64_t length = bytes;
  for (; bytes >= 64; bytes -= 64, p += 64)  // four lanes: a product takes a few cycles
    for (int i = 0; i < 4; ++i)
      lane[i] = mix(word(p + 16 * i) ^ kSecret[i], word(p + 16 * i + 8) ^ lane[i]);
  unsigned char rest[64] = {};
  std::memcpy(rest, p, static_cast<size_t>(bytes));
  for (int i = 0; i < 4; ++i)
    lane[i] = mix(word(rest + 16 * i) ^ kSecret[i], word(rest + 16 * i + 8) ^ lane[i]);
  const uint64_t both = mix(lane[0] ^ kSecret[1], lane[1]) ^ mix(lane[2] ^ kSecret[3], lane[3]);
  return mix(both ^ kSecret[0], static_cast<uint64_t>(length) ^ kSecret[2]);
}

}  // namespace

uint64_t checksum(const void *data, int64_t rows, int64_t row_bytes, int64_t row_stride,
                  int threads) {
  const auto *first = static_cast<const unsigned char *>(data);
  if (rows > 0 && row_stride == row_bytes) {  // one piece of memory
    row_bytes *= rows;
    rows = 1;
  }
  if (rows == 1 && row_bytes <= kChunk) return sum_of(first, row_bytes, 1);
  const int64_t per_row = (row_bytes + kChunk - 1) / kChunk;
  std::vector<uint64_t> sums(static_cast<size_t>(rows * per_row));
  const int used = useful_threads(threads, rows * row_bytes / 16);
  Counter chunks(rows * per_row, 1, used);
  in_parallel(used, [&](int thread) {
    chunks.share(thread, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t at = c % per_row * kChunk;
        sums[c] =
            sum_of(first + c / per_row * row_stride + at, std::min(kChunk, row_bytes - at), 1);
      }
    });
  });
  return sum_of(reinterpret_cast<const unsigned char *>(sums.data()),
                static_cast<int64_t>(sums.size() * sizeof(uint64_t)), 2);
}

bool rows_alike(const void *data, const int32_t *first, int64_t rows, int64_t row_bytes,
                int64_t row_stride, int64_t step, int threads) {
  const auto *x = static_cast<const unsigned char *>(data);
  const int64_t looked_at = (rows + step - 1) / step;
  const int used = useful_threads(threads, looked_at * row_bytes / 16);
  Counter pieces(looked_at, std::max<int64_t>(1, kChunk / std::max<int64_t>(row_bytes, 1)), used);
  std::atomic<bool> alike{true};
  in_parallel(used, [&](int thread) {
    pieces.share(thread, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end && alike.load(std::memory_order_relaxed); ++k) {
        const int64_t i = k * step;
        if (first[i] == i) continue;
        if (std::memcmp(x + i * row_stride, x + first[i] * row_stride, row_bytes) != 0)
          alike.store(false, std::memory_order_relaxed);
      }
    });
  });
  return alike;
}

}  // namespace hag
