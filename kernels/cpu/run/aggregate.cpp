#include "run/aggregate.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "interrupt.h"
#include "refuse.h"
#include "run/instruction_set.h"
#include "run/op_order.h"
#include "threads.h"

namespace hag {
namespace {

struct Kernels {
  decltype(&hag_scratch_bytes_baseline) scratch_bytes;
  decltype(&hag_aggregate_tile_baseline) tile;
  decltype(&hag_aggregate_hub_baseline) hub;
  decltype(&hag_masked_sum_baseline) masked_sum;
};

#define HAG_KERNELS(ISA) \
  {hag_scratch_bytes_##ISA, hag_aggregate_tile_##ISA, hag_aggregate_hub_##ISA, hag_masked_sum_##ISA}
const Kernels kKernels[] = {HAG_EVERY_ISA(HAG_KERNELS)};

const Kernels &kernels() { return kKernels[isa_in_use()]; }

// ---------------------------------------------------------------- scratch

// Rows of up to this many bytes are narrow: two cache lines.
constexpr int64_t kNarrowRow = 128;

// A thread's scratch lives on between calls, so that it stays in cache; not beyond this size.
constexpr size_t kKeptScratch = size_t{8} << 20;
constexpr int64_t kCacheLine = 64;

class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  void *get(size_t bytes) noexcept {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
      data_ = std::aligned_alloc(kCacheLine, size_);
      if (!data_) size_ = 0;
    }
    return data_;
  }
  void trim() noexcept {
    if (size_ <= kKeptScratch) return;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }

 private:
  void *data_ = nullptr;
  size_t size_ = 0;
};
thread_local Scratch scratch_of_thread;

int64_t scratch_budget() {
  static const int64_t budget = [] {
    const int64_t l2 = second_cache_bytes();
    return (l2 > 0 ? l2 : 1 << 20) / 2;
  }();
  return budget;
}

// ---------------------------------------------------------------- writing y

// A machine for many may say that it has hundreds of MiB of last-level cache: they are not one
// program's.
constexpr int64_t kMostOfLastCache = int64_t{32} << 20;

// Outputs from this size on have left the caches when they are read again.
int64_t stream_from() {
  static const int64_t bytes = [] {
    const int64_t last = last_cache_bytes();
    return last > 0 ? last : kMostOfLastCache;
  }();
  return bytes;
}

// Whether an array has been written before, as far as a few of its pages tell. The system clears a
// page through the cache at its first write, which would then be written to memory twice.
bool is_mapped(const void *data, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t samples = 8;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (int64_t i = 0; i < samples; ++i) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(data) + (bytes - 1) / (samples - 1) * i;
    unsigned char resident = 0;
    if (mincore(reinterpret_cast<void *>(at / page * page), page, &resident) || !(resident & 1))
      return false;
  }
  return true;
#else
  (void)data, (void)bytes;
  return false;
#endif
}

// Whether y is written past the caches: a large one, whose lines would otherwise be read first, a
// third of all traffic where x and y are large. Needs rows of whole lines, and no conversion.
bool streams(const Program::Arguments &a, int64_t size) {
  const int64_t row = a.width * size, bytes = a.batch * a.y_rows * row;
  return size >= 4 && row % kCacheLine == 0 && reinterpret_cast<uintptr_t>(a.y) % kCacheLine == 0 &&
         bytes >= stream_from() && is_mapped(a.y, bytes);
}

}  // namespace

int64_t second_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), 0);
#else
  return 0;
#endif
}

int64_t last_cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  return std::clamp<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 0, kMostOfLastCache);
#else
  return 0;
#endif
}

int element_size(int dtype) {
  switch (dtype) {
    case HAG_FLOAT32:
      return 4;
    case HAG_FLOAT64:
      return 8;
    case HAG_FLOAT16:
    case HAG_BFLOAT16:
      return 2;
  }
  refuse("dtype_code is ", dtype, ", expected 0 (float32), 1 (float64), 2 (float16), 3 (bfloat16)");
}

std::vector<std::string> reducers() {
#define HAG_NAME(NAME, name) #name,
  return {HAG_EVERY_REDUCER(HAG_NAME)};
#undef HAG_NAME
}

int accumulator_size(int dtype) { return dtype == HAG_FLOAT64 ? 8 : 4; }

void advise_huge_pages(void *data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + huge - 1) / huge * huge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / huge * huge;
  if (last > first) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// ---------------------------------------------------------------- validation

namespace {

void check_offsets(const char *name, const View<int64_t> &ptr, const char *of, int64_t total) {
  if (ptr.size < 1) refuse(name, " is empty, expected at least one element");
  if (ptr[0] != 0) refuse(name, "[0] is ", ptr[0], ", expected 0");
  for (int64_t i = 1; i < ptr.size; ++i)
    if (ptr[i] < ptr[i - 1])
      refuse(name, "[", i, "] is ", ptr[i], ", expected at least ", ptr[i - 1],
             " (offsets never decrease)");
  if (ptr[ptr.size - 1] != total)
    refuse(name, " ends with ", ptr[ptr.size - 1], ", expected ", total, " (", of, ")");
}

}  // namespace

// Ordering ops takes as long as some runs: what may be run only once waits for this one.
constexpr int kOrderedRun = 3;

Program::Program(View<int64_t> tile_ptr, View<int64_t> op_ptr, View<int32_t> source,
                 View<int32_t> target, View<int32_t> hub_row, View<int64_t> hub_ptr,
                 int64_t num_src, int64_t num_dst, int64_t diagonal, bool is_plain, bool is_passing,
                 View<int32_t> tile_scratch)
    : tile_ptr_(tile_ptr),
      op_ptr_(op_ptr),
      source_(source),
      target_(target),
      hub_row_(hub_row),
      hub_ptr_(hub_ptr),
      num_src_(num_src),
      num_dst_(num_dst),
      diagonal_(diagonal),
      narrow_from_(is_passing ? kOrderedRun : 1) {
  if (tile_scratch.data && tile_scratch.size != num_tiles())
    refuse("tile_scratch has ", tile_scratch.size, " elements, expected ", num_tiles());
  if (is_plain || tile_scratch.data) {
    num_partials_ = hub_ptr_[hub_ptr_.size - 1];
    tile_scratch_.assign(num_tiles(), 0);
    for (int64_t tile = 0; tile < tile_scratch.size; ++tile) {
      tile_scratch_[tile] = tile_scratch[tile];
      max_scratch_ = std::max<int64_t>(max_scratch_, tile_scratch[tile]);
    }
    order_tiles();
    return;
  }
  constexpr int64_t limit = int64_t{1} << 31;
  if (num_src < 0 || num_src >= limit) refuse("num_src is ", num_src, ", expected 0..2^31-1");
  if (num_dst < 0 || num_dst >= limit) refuse("num_dst is ", num_dst, ", expected 0..2^31-1");
  if (diagonal && num_dst > num_src)
    refuse("diagonal is ", diagonal, " with ", num_dst, " targets and ", num_src,
           " sources, expected a source for every target");
  check_offsets("tile_ptr", tile_ptr_, "the number of ops", target_.size);
  if (op_ptr_.size != target_.size + 1)
    refuse("op_ptr has ", op_ptr_.size, " elements, expected ", target_.size + 1,
           " (the number of ops + 1)");
  check_offsets("op_ptr", op_ptr_, "the number of sources", source_.size);
  if (hub_ptr_.size != hub_row_.size + 1)
    refuse("hub_ptr has ", hub_ptr_.size, " elements, expected ", hub_row_.size + 1,
           " (the number of hubs + 1)");
  check_offsets("hub_ptr", hub_ptr_, "its own end", hub_ptr_[hub_ptr_.size - 1]);
  num_partials_ = hub_ptr_[hub_ptr_.size - 1];
  if (num_partials_ > target_.size)
    refuse("hub_ptr asks for ", num_partials_, " partial sums, but there are ", target_.size,
           " ops");
  check_tiles();
  order_tiles();
}

void Program::check_tiles() {
  constexpr int64_t never = -1;
  std::vector<int64_t> written_in;  // the tile that last wrote each scratch row
  std::vector<uint8_t> y(num_dst_, 0), partial(num_partials_, 0);
  Pace pace;
  tile_scratch_.assign(num_tiles(), 0);
  for (int64_t tile = 0; tile < num_tiles(); ++tile) {
    int64_t rows = 0;
    for (int64_t op = tile_ptr_[tile]; op < tile_ptr_[tile + 1]; ++op) {
      const int64_t first = op_ptr_[op], last = op_ptr_[op + 1];
      pace(1 + last - first);
      for (int64_t k = first; k < last; ++k) {
        const int64_t s = source_[k];
        if (s >= num_src_)
          refuse("source[", k, "] is row ", s, " of x, expected below num_src = ", num_src_);
        if (s < 0 && (~s >= static_cast<int64_t>(written_in.size()) || written_in[~s] != tile))
          refuse("source[", k, "] reads scratch row ", ~s, " of tile ", tile,
                 ", which no earlier op of the tile writes");
      }
      const int64_t t = target_[op];
      if (t < 0) {
        if (~t >= tile_ptr_[tile + 1] - tile_ptr_[tile])
          refuse("target[", op, "] is scratch row ", ~t, " of tile ", tile,
                 ", expected below its number of ops, ", tile_ptr_[tile + 1] - tile_ptr_[tile]);
        if (~t >= static_cast<int64_t>(written_in.size())) written_in.resize(~t + 1, never);
        written_in[~t] = tile;
        rows = std::max(rows, ~t + 1);
      } else if (t < num_dst_) {
        if (y[t]++) refuse("target[", op, "] writes row ", t, " of y, which was written before");
      } else {
        if (t - num_dst_ >= num_partials_)
          refuse("target[", op, "] is ", t,
                 ", expected below num_dst + partial sums = ", num_dst_ + num_partials_);
        if (partial[t - num_dst_]++)
          refuse("target[", op, "] writes partial sum ", t - num_dst_,
                 ", which was written before");
      }
      if (first == last && (t < 0 || t >= num_dst_))
        refuse("op ", op, " has no source, expected that of rows of y only");
    }
    tile_scratch_[tile] = static_cast<int32_t>(rows);
    max_scratch_ = std::max(max_scratch_, rows);
  }
  for (int64_t h = 0; h < hub_row_.size; ++h) {
    const int64_t row = hub_row_[h];
    if (row < 0 || row >= num_dst_)
      refuse("hub_row[", h, "] is ", row, ", expected 0..num_dst - 1 = ", num_dst_ - 1);
    if (y[row]++) refuse("hub_row[", h, "] is row ", row, " of y, which was written before");
    if (hub_ptr_[h] == hub_ptr_[h + 1]) refuse("hub ", h, " has no partial sums");
  }
  for (int64_t i = 0; i < num_dst_; ++i)
    if (!y[i]) refuse("row ", i, " of y is never written");
  for (int64_t i = 0; i < num_partials_; ++i)
    if (!partial[i]) refuse("partial sum ", i, " is never written");
}

// Tiles much larger than the mean start first, so that none of them is left over at the end; the
// others keep their order, which keeps neighbouring rows of x and y together in time.
void Program::order_tiles() {
  const int64_t tiles = num_tiles();
  if (tiles < 2 || tiles >= (int64_t{1} << 31)) return;
  const auto work = [this](int64_t tile) {
    const int64_t first = tile_ptr_[tile], last = tile_ptr_[tile + 1];
    return op_ptr_[last] - op_ptr_[first] + 2 * (last - first);
  };
  const int64_t heavy = 4 * ((source_.size + 2 * target_.size) / tiles + 1);
  std::vector<int32_t> first, rest;
  for (int64_t tile = 0; tile < tiles; ++tile)
    (work(tile) > heavy ? first : rest).push_back(static_cast<int32_t>(tile));
  if (first.empty()) return;
  std::stable_sort(first.begin(), first.end(),
                   [&](int32_t a, int32_t b) { return work(a) > work(b); });
  num_heavy_ = static_cast<int64_t>(first.size());
  first.insert(first.end(), rest.begin(), rest.end());
  order_ = std::move(first);
}

// ---------------------------------------------------------------- running

const OpOrder *Program::narrow_order() const {
  if (narrow_runs_.load(std::memory_order_relaxed) < narrow_from_ && ++narrow_runs_ < narrow_from_)
    return nullptr;
  std::call_once(narrow_once_, [this] {
    narrow_ =
        group_by_arity({tile_ptr_, op_ptr_, source_, target_, {tile_scratch_.data(), num_tiles()}});
  });
  return narrow_.op_ptr.empty() ? nullptr : &narrow_;
}

void Program::run(const Arguments &a) const {
  const int64_t size = element_size(a.dtype);
  if (a.reduce < 0 || a.reduce >= HAG_NUM_REDUCERS)
    refuse("reduce_code is ", a.reduce, ", expected 0 to ", HAG_NUM_REDUCERS - 1);
  if (a.x_rows != num_src_) refuse("x has ", a.x_rows, " rows, expected ", num_src_);
  if (a.y_rows != num_dst_) refuse("y has ", a.y_rows, " rows, expected ", num_dst_);
  if (a.width < 0 || a.batch < 0)
    refuse("width ", a.width, " and batch ", a.batch, ", expected none negative");
  if (a.x_row_stride < 0 || a.x_batch_stride < 0)
    refuse("x has strides ", a.x_batch_stride, ", ", a.x_row_stride, ", expected none negative");
  const int threads =
      useful_threads(a.threads, a.batch * a.width * (source_.size + 2 * target_.size));
  if (a.reduce != HAG_SUM && (a.source_scale || a.target_scale)) refuse("scales are for sums only");
  if (a.reduce != HAG_SUM && diagonal_ != 0 && diagonal_ != 1)
    refuse("a program with diagonal ", diagonal_, " can only sum");
  if (a.batch == 0 || a.width == 0 || num_dst_ == 0) return;
  if (!a.y || (!a.x && num_src_ > 0)) refuse("x or y is a null pointer");

  const int64_t acc_size = accumulator_size(a.dtype);
  std::unique_ptr<char[]> partials;
  const int64_t partial_bytes = num_partials_ * a.width * acc_size;
  if (num_partials_ > 0) partials.reset(new char[partial_bytes * a.batch]);

  const OpOrder *order = a.width * acc_size <= kNarrowRow ? narrow_order() : nullptr;
  // What stays in L2 by itself need not be fetched ahead, at two instructions a source.
  const bool cached = num_src_ * a.width * size <= scratch_budget();
  const bool stream = streams(a, size);
  // From half of it on, since others use the last-level cache, too. Plain rows lie and are written
  // as the processor foresees; where many are found in the caches, asking further ahead drives
  // these out.
  const int64_t moved = a.batch * (num_src_ + num_dst_) * a.width * size;
  const bool beyond = max_scratch_ > 0 && moved > stream_from() / 2;
  const auto matrix = [&](int64_t b) {
    HagAggregate w;
    w.tile_ptr = tile_ptr_.data;
    w.op_ptr = order ? order->op_ptr.data() : op_ptr_.data;
    w.source = order ? order->source.data() : source_.data;
    w.target = order ? order->target.data() : target_.data;
    w.tile_scratch = tile_scratch_.data();
    w.hub_row = hub_row_.data, w.hub_ptr = hub_ptr_.data;
    w.prefetch_end = cached ? 0 : source_.size;
    w.num_dst = num_dst_, w.diagonal = diagonal_;
    w.x = static_cast<const char *>(a.x) + b * a.x_batch_stride * size;
    w.y = static_cast<char *>(a.y) + b * num_dst_ * a.width * size;
    w.partial = partials.get() + b * partial_bytes;
    w.source_scale = a.source_scale, w.target_scale = a.target_scale;
    w.width = a.width, w.x_row_stride = a.x_row_stride;
    w.scratch_budget = scratch_budget();
    w.dtype = a.dtype, w.reduce = a.reduce, w.beyond = beyond, w.stream = stream;
    return w;
  };

  const Kernels &k = kernels();
  const HagAggregate any = matrix(0);
  // A tile with fewer scratch rows may take wider blocks, but never more bytes than the budget
  // allows or than the largest tile needs.
  const size_t bytes =
      std::max<int64_t>(k.scratch_bytes(&any, max_scratch_),
                        std::min(any.scratch_budget, max_scratch_ * (a.width * acc_size + 64)));
  const int64_t tiles = num_tiles();
  const int64_t grain = (tiles - num_heavy_) * a.batch / (int64_t{threads} * 16);
  // Heavy tiles one by one, then the others in runs of neighbours.
  Counter heavy(num_heavy_ * a.batch, 1, 1);
  Counter light((tiles - num_heavy_) * a.batch, grain, threads);
  std::atomic<bool> out_of_memory{false};

  const auto run_tiles = [&](int thread, Counter &counter, int64_t offset, int64_t count,
                             void *scratch) {
    counter.share(thread, [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last;) {
        const HagAggregate w = matrix(item / count);
        const int64_t stop = std::min(last, (item / count + 1) * count);
        for (; item < stop; ++item) {
          const int64_t tile = offset + item % count;
          k.tile(&w, order_.empty() ? tile : order_[tile], scratch);
        }
      }
    });
  };
  in_parallel(threads, [&](int thread) {
    void *scratch = scratch_of_thread.get(bytes);
    if (bytes > 0 && !scratch) {
      out_of_memory = true;
      return;
    }
    run_tiles(thread, heavy, 0, num_heavy_, scratch);
    run_tiles(thread, light, num_heavy_, tiles - num_heavy_, scratch);
    scratch_of_thread.trim();
  });
  if (out_of_memory) throw std::bad_alloc();
  const int64_t num_hubs = hub_row_.size * a.batch;
  if (num_hubs > 0) {
    Counter hubs(num_hubs, 1, 1);
    in_parallel(static_cast<int>(std::min<int64_t>(threads, num_hubs)), [&](int thread) {
      hubs.share(thread, [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item) {
          const HagAggregate w = matrix(item / hub_row_.size);
          k.hub(&w, item % hub_row_.size);
        }
      });
    });
  }
}

namespace {

// Runs body(matrix, first row, last row) over all rows of a batch of matrices.
template <class Body>
void over_rows(int64_t batch, int64_t rows, int64_t work, int threads, const Body &body) {
  if (batch < 0 || rows < 0) refuse("batch ", batch, ", rows ", rows, ", expected none negative");
  const int used = useful_threads(threads, work);
  const int64_t grain = std::max<int64_t>(rows / (int64_t{used} * 32), 1);
  const int64_t pieces = (rows + grain - 1) / grain;
  Counter counter(batch * pieces, 1, used);
  in_parallel(used, [&](int thread) {
    counter.share(thread, [&](int64_t item, int64_t) {
      const int64_t first = item % pieces * grain;
      body(item / pieces, first, std::min(first + grain, rows));
    });
  });
}

const void *shift(const void *p, int64_t bytes) {
  return p ? static_cast<const char *>(p) + bytes : p;
}

void *shift(void *p, int64_t bytes) { return static_cast<char *>(p) + bytes; }

}  // namespace

void masked_sum(const HagMaskedSum &args, int64_t num_rows, int64_t batch, int threads) {
  const int64_t row = args.width * element_size(args.dtype);
  if (row == 0 || num_rows == 0 || batch == 0) return;
  const int64_t work = batch * args.width * (args.row_ptr[num_rows] + num_rows);
  const Kernels &k = kernels();  // not inside the parallel region: it may throw
  over_rows(batch, num_rows, work, threads, [&](int64_t b, int64_t first, int64_t last) {
    HagMaskedSum one = args;
    one.v = shift(args.v, b * args.num_cols * row);
    one.key_source = shift(args.key_source, b * args.num_cols * row);
    one.key_target = shift(args.key_target, b * num_rows * row);
    one.out = shift(args.out, b * num_rows * row);
    k.masked_sum(&one, first, last);
  });
}

}  // namespace hag
