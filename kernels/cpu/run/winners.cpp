#include "run/winners.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "refuse.h"
#include "run/instruction_set.h"
#include "threads.h"

namespace hag {
namespace {

struct Kernels {
  decltype(&hag_winner_bytes_baseline) bytes;
  decltype(&hag_winner_tile_baseline) tile;
  decltype(&hag_winner_hub_baseline) hub;
};

#define HAG_KERNELS(ISA) {hag_winner_bytes_##ISA, hag_winner_tile_##ISA, hag_winner_hub_##ISA}
const Kernels kKernels[] = {HAG_EVERY_ISA(HAG_KERNELS)};

const Kernels &kernels() { return kKernels[isa_in_use()]; }

constexpr int64_t kPiecesPerThread = 16;
constexpr size_t kCacheLine = 64;

// Runs body(first, last, scratch) over pieces of 0 .. count - 1 on this many threads.
template <class Body>
void share(int threads, int64_t count, int64_t scratch_bytes, const Body &body) {
  Counter counter(count, count / (threads * kPiecesPerThread), threads);
  std::atomic<bool> out_of_memory{false};
  in_parallel(threads, [&](int thread) {
    const size_t bytes = (scratch_bytes / kCacheLine + 1) * kCacheLine;
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(kCacheLine, bytes),
                                                              &std::free);
    if (!scratch) {
      out_of_memory = true;
      return;
    }
    counter.share(thread, [&](int64_t first, int64_t last) { body(first, last, scratch.get()); });
  });
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace

void winners(const Program &p, const WinnerArguments &a) {
  const int64_t size = element_size(a.dtype), acc_size = accumulator_size(a.dtype);
  if (a.x_rows != p.num_src() || a.y_rows != p.num_dst())
    refuse("x and y have ", a.x_rows, " and ", a.y_rows, " rows, expected ", p.num_src(), " and ",
           p.num_dst());
  if (p.diagonal() != 0 && p.diagonal() != 1)
    refuse("a program with diagonal ", p.diagonal(), " can only sum");
  if (a.width <= 0 || a.batch <= 0 || p.num_dst() == 0) return;
  const int64_t tiles = p.num_tiles(), hubs = p.hub_row().size;
  const int64_t partial_size = p.num_partials() * a.width * acc_size;
  const std::unique_ptr<char[]> partial(new char[2 * a.batch * partial_size]);

  const auto matrix = [&](int64_t b) {
    HagWinners w;
    w.tile_ptr = p.tile_ptr().data, w.op_ptr = p.op_ptr().data;
    w.source = p.source().data, w.target = p.target().data;
    w.tile_scratch = p.tile_scratch().data();
    w.hub_row = p.hub_row().data, w.hub_ptr = p.hub_ptr().data;
    w.num_dst = p.num_dst(), w.diagonal = p.diagonal();
    w.x = static_cast<const char *>(a.x) + b * p.num_src() * a.width * size;
    w.y = static_cast<char *>(a.y) + b * p.num_dst() * a.width * size;
    w.winner = a.winner + b * p.num_dst() * a.width;
    w.partial = partial.get() + 2 * b * partial_size;
    w.partial_id = partial.get() + (2 * b + 1) * partial_size;
    w.width = a.width;
    w.largest = a.largest, w.last = a.last, w.dtype = a.dtype;
    return w;
  };

  const Kernels &k = kernels();
  const int64_t work = a.batch * a.width * 2 * (p.source().size + 2 * p.target().size);
  const int threads = useful_threads(a.threads, work);
  const auto run = [&](int64_t count, bool of_tiles) {
    const int64_t bytes = of_tiles ? k.bytes(p.scratch_rows()) : 0;
    share(threads, count * a.batch, bytes, [&](int64_t first, int64_t last, void *scratch) {
      for (int64_t item = first; item < last; ++item) {
        const HagWinners w = matrix(item / count);
        if (of_tiles) k.tile(&w, item % count, scratch);
        else k.hub(&w, item % count);
      }
    });
  };
  run(tiles, true);
  if (hubs > 0) run(hubs, false);
}

namespace {

// Columns are cut, so that each sum is made in the order of the rows on any number of threads.
template <class T>
void add_columns(const T *grad, const int64_t *winner, T *out, int64_t num_winners,
                 int64_t num_rows, int64_t width, int64_t from, int64_t to) {
  for (int64_t i = 0; i < num_winners; ++i)
    for (int64_t f = from; f < to; ++f) {
      const int64_t j = winner[i * width + f];
      if (j >= 0 && j < num_rows) out[j * width + f] += grad[i * width + f];
    }
}

}  // namespace

void add_to_winners(const void *grad, const int64_t *winner, void *out, int64_t batch,
                    int64_t num_winners, int64_t num_rows, int64_t width, int dtype, int threads) {
  if (dtype != HAG_FLOAT32 && dtype != HAG_FLOAT64)
    refuse("dtype_code is ", dtype, ", expected 0 (float32) or 1 (float64)");
  if (width <= 0 || batch <= 0 || num_winners <= 0) return;
  const int64_t elements = batch * num_winners * width;
  const int64_t line = kCacheLine / element_size(dtype), lines = (width + line - 1) / line;
  const int used =
      static_cast<int>(std::min<int64_t>(useful_threads(threads, elements), batch * lines));
  const int64_t pieces = std::min<int64_t>(lines, used);
  share(used, batch * pieces, 0, [&](int64_t first, int64_t last, void *) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t b = item / pieces, piece = item % pieces;
      const int64_t from = lines * piece / pieces * line;
      const int64_t to = std::min(lines * (piece + 1) / pieces * line, width);
      const int64_t at = b * num_winners * width, to_row = b * num_rows * width;
      if (dtype == HAG_FLOAT32)
        add_columns(static_cast<const float *>(grad) + at, winner + at,
                    static_cast<float *>(out) + to_row, num_winners, num_rows, width, from, to);
      else
        add_columns(static_cast<const double *>(grad) + at, winner + at,
                    static_cast<double *>(out) + to_row, num_winners, num_rows, width, from, to);
    }
  });
}

}  // namespace hag
