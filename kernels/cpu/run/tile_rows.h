// The kernels, once for every instruction set: isa_*.cpp define HAG_ISA and include this file.
//
// Features are taken L lanes at a time. A width that is no multiple of L ends in a vector that
// overlaps the one before it (both write the same values), and a width below L uses shorter
// vectors, so no lane is ever masked and no element outside a row is touched.
//
// Everything but the entry points at the end sits in an anonymous namespace, see tile_abi.h.

#include "run/tile_abi.h"
#include "run/vectors.h"

namespace {

// ---------------------------------------------------------------- reducers

// Extrema: NaN wins, as in torch.amax and torch.amin. What is asked of v alone waits for no other
// row: rows are compared one after the other, and narrow ones are bound by that.
template <int R, class V>
HAG_INLINE V combine(V a, V v) {
  if constexpr (R == HAG_SUM) return a + v;
  else {
    static_assert(R == HAG_MAX || R == HAG_MIN, "a reducer without its case");
    return v != v ? v : further<R == HAG_MAX>(v, a);
  }
}

// ---------------------------------------------------------------- the ops of a tile

constexpr int64_t kOpsAhead = 8;  // whose row of y is fetched, where it comes from memory

// Sources that are summed in one go. Rounding adds up where the same row is added again and again,
// as sorted duplicates are: the error of so many terms is below 1e-6 sqrt(terms) even then, and so
// is that of a sum of such sums.
constexpr int64_t kTermsAtOnce = 256;

template <class T, int R, bool SCALED, int L, int N>
struct RowBlock {
  typedef typename T::Elem Elem;
  typedef typename T::Acc Acc;
  typedef Vec<Acc, L> V;

  const Elem *x;
  Elem *y;
  Acc *partial;
  Acc *scratch;
  const Acc *source_scale, *target_scale;
  int64_t x_stride, width, num_dst, diagonal, last;
  bool stream;  // y is written past the caches
  bool far;     // scratch has outgrown L2

  static constexpr int64_t pitch = (int64_t)N * L;  // between rows of scratch
  // Rows of up to two cache lines are bound by instructions: a choice for every op is too dear.
  static constexpr bool kWide = T::same && pitch * (int64_t)sizeof(Acc) > 128;

  HAG_INLINE int64_t at(int n) const { return lane<N, L>(n, last); }

  HAG_INLINE void load_x(int64_t row, V *v) const {
    const Elem *p = x + row * x_stride;
    HAG_UNROLL for (int n = 0; n < N; ++n) v[n] = T::template load<L>(p + at(n));
  }

  // MIXED: s may be a row of scratch. FIRST: acc is set, otherwise it is added to.
  template <bool MIXED, bool FIRST>
  HAG_INLINE void take(int32_t s, V *acc) const {
    if constexpr (T::same && MIXED) {
      // Rows of x and of scratch mix freely, so the choice must not be a branch.
      const int64_t below = (int64_t)s >> 63;
      const int64_t row = (int64_t)s ^ below;
      const uintptr_t base = (uintptr_t)x + (((uintptr_t)scratch - (uintptr_t)x) & below);
      const int64_t stride = x_stride + ((pitch - x_stride) & below);
      const Elem *p = (const Elem *)base + row * stride;
      if constexpr (SCALED) {
        const Acc stored = source_scale[(int64_t)s & ~below];
        const Acc weight = below ? (Acc)1 : stored;
        const V w = V{} + weight;
        HAG_UNROLL for (int n = 0; n < N; ++n) {
          const V v = T::template load<L>(p + at(n));
          acc[n] = FIRST ? w * v : multiply_add(w, v, acc[n]);
        }
      } else {
        HAG_UNROLL for (int n = 0; n < N; ++n) {
          const V v = T::template load<L>(p + at(n));
          acc[n] = FIRST ? v : combine<R>(acc[n], v);
        }
      }
    } else if (MIXED && s < 0) {
      const Acc *p = scratch + (int64_t)~s * pitch;
      HAG_UNROLL for (int n = 0; n < N; ++n) {
        const V v = load_as<V>(p + at(n));
        acc[n] = FIRST ? v : combine<R>(acc[n], v);
      }
    } else {
      V v[N];
      load_x(s, v);
      if constexpr (SCALED) {
        const V w = V{} + source_scale[s];
        HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] =
            FIRST ? w * v[n] : multiply_add(w, v[n], acc[n]);
      } else {
        HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = FIRST ? v[n] : combine<R>(acc[n], v[n]);
      }
    }
  }

  HAG_INLINE void add_scratch(int64_t row, V *acc) const {
    const Acc *p = scratch + row * pitch;
    HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = combine<R>(acc[n], load_as<V>(p + at(n)));
  }

  HAG_INLINE void write_acc(Acc *p, const V *acc) const {
    HAG_UNROLL for (int n = 0; n < N; ++n) store_as(p + at(n), acc[n]);
  }

  // y_i = t_i * (acc + d * s_i * x_i); `empty`: no source was seen, acc is 0.
  HAG_INLINE void write_y(int64_t i, const V *acc, bool empty) const {
    Elem *p = y + i * width;
    V out[N];
    HAG_UNROLL for (int n = 0; n < N; ++n) out[n] = acc[n];
    if (diagonal) {
      V v[N];
      load_x(i, v);
      if constexpr (R == HAG_SUM) {
        Acc d = (Acc)diagonal;
        if constexpr (SCALED) d *= source_scale[i];
        HAG_UNROLL for (int n = 0; n < N; ++n) out[n] = multiply_add(V{} + d, v[n], out[n]);
      } else {
        HAG_UNROLL for (int n = 0; n < N; ++n) out[n] = empty ? v[n] : combine<R>(out[n], v[n]);
      }
    }
    if (target_scale) {
      const V t = V{} + target_scale[i];
      HAG_UNROLL for (int n = 0; n < N; ++n) out[n] = out[n] * t;
    }
    if constexpr (T::same && N > 2) {  // in narrow rows, asking costs as much as it saves
      if (stream) {
        HAG_UNROLL for (int n = 0; n < N; ++n) stream_as(p + at(n), out[n]);
        return;
      }
    }
    HAG_UNROLL for (int n = 0; n < N; ++n) T::template store<L>(p + at(n), out[n]);
  }

  HAG_INLINE void write(int32_t t, const V *acc, bool empty) const {
    if (t < 0) write_acc(scratch + (int64_t)~t * pitch, acc);
    else if (t < num_dst) write_y(t, acc, empty);
    else write_acc(partial + (t - num_dst) * width, acc);
  }

  // FAR: rows of scratch are fetched ahead, too. Otherwise row 0 of x stands for them: a branch
  // would cost more.
  template <bool MIXED, bool FAR = false>
  HAG_INLINE void prefetch(int32_t s) const {
    const char *p;
    if constexpr (FAR) {
      const int64_t below = (int64_t)s >> 63;
      const int64_t stride = x_stride + ((pitch - x_stride) & below);
      const uintptr_t base = (uintptr_t)x + (((uintptr_t)scratch - (uintptr_t)x) & below);
      p = (const char *)((const Elem *)base + ((int64_t)s ^ below) * stride);
    } else {
      const int64_t row = MIXED ? s & ~(s >> 31) : s;
      p = (const char *)(x + row * x_stride);
    }
    constexpr int64_t bytes = (int64_t)N * L * sizeof(Elem);
    HAG_UNROLL for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 0, 3);
  }

  // Lines of y must be read before they are written, and a HAG writes its rows in an order that no
  // processor foresees. Row 0 stands for those of scratch and for partial sums.
  HAG_INLINE void prefetch_y(int32_t t) const {
    const int64_t row = (uint64_t)(int64_t)t < (uint64_t)num_dst ? t : 0;
    const char *p = (const char *)(y + row * width);
    constexpr int64_t bytes = (int64_t)N * L * sizeof(Elem);
    HAG_UNROLL for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 1, 3);
  }

  // The sources k .. stop - 1 of an op, of which there is one at least.
  template <bool MIXED>
  HAG_INLINE void reduce(const int32_t *source, int64_t k, int64_t stop, int64_t ahead,
                         int64_t distance, V *acc) const {
    if (k < ahead) {
      if (MIXED && kWide && far) prefetch<MIXED, MIXED && kWide>(source[k + distance]);
      else prefetch<MIXED>(source[k + distance]);
    }
    take<MIXED, true>(source[k], acc);
    ++k;
    if constexpr (MIXED && kWide) {
      if (far) {
        for (; k < stop; ++k) {
          if (k < ahead) prefetch<true, true>(source[k + distance]);
          take<true, false>(source[k], acc);
        }
      }
    }
    if constexpr (MIXED && (kWide || !T::same)) {
      // The search puts an op's rows of scratch first, so these loops change over once.
      while (k < stop) {
        for (; k < stop && source[k] < 0; ++k) add_scratch(~source[k], acc);
        for (; k < stop && source[k] >= 0; ++k) {
          if (k < ahead) prefetch<true>(source[k + distance]);
          take<false, false>(source[k], acc);
        }
      }
    } else {
      // Narrow: one loop, whose end is easier to predict than a change-over.
      for (; k < stop; ++k) {
        if (k < ahead) prefetch<MIXED>(source[k + distance]);
        take<MIXED, false>(source[k], acc);
      }
    }
  }

  // Not inlined: few ops are as long, and their registers are others' too.
  template <bool MIXED>
  __attribute__((noinline)) void sum_of_sums(const int32_t *source, int64_t k, int64_t stop,
                                             int64_t ahead, int64_t distance, V *sum) const {
    for (bool first = true; k < stop; k += kTermsAtOnce, first = false) {
      const int64_t until = stop - k < kTermsAtOnce ? stop : k + kTermsAtOnce;
      V part[N];
      reduce<MIXED>(source, k, until, ahead, distance, part);
      HAG_UNROLL for (int n = 0; n < N; ++n) sum[n] = first ? part[n] : sum[n] + part[n];
    }
  }

  template <bool MIXED>
  void tile(const HagAggregate &w, int64_t t) const {
    const int32_t *source = w.source;
    const int64_t *op_ptr = w.op_ptr;
    const int64_t end = w.tile_ptr[t + 1];
    // Rows that come from memory are asked for earlier.
    const bool beyond = MIXED && N > 2 && w.beyond;
    const int64_t distance = prefetch_distance(N * L * sizeof(Elem)) << beyond;
    const int64_t ahead = w.prefetch_end - distance;
    [[maybe_unused]] const int64_t ahead_of_y = beyond && !stream ? end - kOpsAhead : 0;
    int64_t op = w.tile_ptr[t];
    int64_t k = op_ptr[op];
    for (; op < end; ++op) {
      const int64_t stop = op_ptr[op + 1];
      const bool empty = k == stop;
      if constexpr (MIXED && N > 2) {
        if (op < ahead_of_y) prefetch_y(w.target[op + kOpsAhead]);
      }
      V acc[N];
      if (empty) {
        HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = V{};
      } else if (R == HAG_SUM && stop - k > kTermsAtOnce) {
        V sum[N];  // whose address is known elsewhere, as that of `acc` must not be
        sum_of_sums<MIXED>(source, k, stop, ahead, distance, sum);
        HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = sum[n];
      } else {
        reduce<MIXED>(source, k, stop, ahead, distance, acc);
      }
      k = stop;
      const int32_t row = w.target[op];
      write(row, acc, empty);
      // Twin rows: ops that only copy the scratch row just written, still in the registers.
      if (row < 0)
        for (; op + 1 < end && op_ptr[op + 2] == k + 1 && source[k] == row; ++op, ++k)
          write(w.target[op + 1], acc, false);
    }
  }

  void hub(const HagAggregate &w, int64_t h) const {
    int64_t p = w.hub_ptr[h];  // a hub has at least one partial sum
    V acc[N];
    HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = load_as<V>(partial + p * width + at(n));
    for (++p; p < w.hub_ptr[h + 1]; ++p)
      HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] =
          combine<R>(acc[n], load_as<V>(partial + p * width + at(n)));
    write_y(w.hub_row[h], acc, false);
  }
};

// A block of a row is at least this long, whatever the scratch: an op costs as much as the four
// cache lines, and each block runs all of them again.
constexpr int64_t kLeastBlock = 256;

// How a row is cut into blocks: `blocks` of them, `vectors` vectors of L lanes in all, and cut
// between cache lines, of `unit` vectors, where the row is made of these.
struct Cut {
  int64_t vectors, blocks, unit;

  HAG_INLINE int64_t first(int64_t block) const { return vectors / unit * block / blocks * unit; }
  HAG_INLINE int64_t longest() const { return (vectors / unit + blocks - 1) / blocks * unit; }
};

template <class Acc>
HAG_INLINE Cut cut(int64_t width, int64_t scratch_rows, int64_t budget) {
  constexpr int64_t L = kVectorBytes / sizeof(Acc);
  const int64_t vectors = width < L ? 1 : (width + L - 1) / L;
  int64_t most = kMaxVectors;
  if (scratch_rows > 0) {
    constexpr int64_t least = kLeastBlock / kVectorBytes;
    const int64_t fit = budget / (scratch_rows * kVectorBytes);
    if (fit < most) most = fit < least ? least : fit;
    if (most > kMaxVectors) most = kMaxVectors;
  }
  constexpr int64_t line = 64 / kVectorBytes;
  static_assert(kMaxVectors % line == 0, "a block that is cut between lines could be too long");
  return {vectors, (vectors + most - 1) / most, vectors % line ? 1 : line};
}

template <class T, int R, bool SCALED, int L, int N, bool HUB>
void run_block(const HagAggregate &w, int64_t item, void *scratch, int64_t from, int64_t last) {
  typedef typename T::Elem Elem;
  typedef typename T::Acc Acc;
  typedef RowBlock<T, R, SCALED, L, N> Block;
  const bool far = Block::kWide && !HUB &&
                   w.tile_scratch[item] * Block::pitch * (int64_t)sizeof(Acc) > w.scratch_budget;
  const Block block = {(const Elem *)w.x + from,
                       (Elem *)w.y + from,
                       (Acc *)w.partial + from,
                       (Acc *)scratch,
                       (const Acc *)w.source_scale,
                       (const Acc *)w.target_scale,
                       w.x_row_stride,
                       w.width,
                       w.num_dst,
                       w.diagonal,
                       last,
                       !HUB && w.stream,
                       far};
  if constexpr (HUB) block.hub(w, item);
  else if ((T::same || N <= 2) && w.tile_scratch[item] == 0)
    // Fewer instructions a source: narrow rows go 1.4x as fast this way, wide ones 1.05x. Wide
    // rows of half types are bound by their conversion.
    block.template tile<!(T::same || N <= 2)>(w, item);
  else block.template tile<true>(w, item);
}

template <class T, int R, bool SCALED, bool HUB, int L>
void run_narrow(const HagAggregate &w, int64_t item, void *scratch) {
  if constexpr (L >= 1) {
    if (w.width < L) run_narrow<T, R, SCALED, HUB, L / 2>(w, item, scratch);
    else if (w.width == L) run_block<T, R, SCALED, L, 1, HUB>(w, item, scratch, 0, 0);
    else if constexpr (L > 1) run_block<T, R, SCALED, L, 2, HUB>(w, item, scratch, 0, w.width - L);
  }
}

template <class T, int R, bool SCALED, bool HUB>
void run_wide(const HagAggregate &w, int64_t item, void *scratch) {
  constexpr int L = kVectorBytes / sizeof(typename T::Acc);
  if (w.width < L) return run_narrow<T, R, SCALED, HUB, L / 2>(w, item, scratch);
  if constexpr (HUB) {  // few rows, so one vector at a time is good enough
    for (int64_t start = 0; start < w.width; start += L)
      run_block<T, R, SCALED, L, 1, true>(w, item, scratch, start,
                                          start + L > w.width ? w.width - L - start : 0);
    return;
  }
  const Cut c = cut<typename T::Acc>(w.width, w.tile_scratch[item], w.scratch_budget);
  for (int64_t b = 0; b < c.blocks; ++b) {
    const int64_t from = c.first(b), to = c.first(b + 1);
    const int64_t start = from * L;
    int64_t last = (to - from - 1) * L;
    if (last > w.width - L - start) last = w.width - L - start;
    switch (to - from) {
#define HAG_CASE(N)                                                      \
  case N:                                                                \
    run_block<T, R, SCALED, L, N, false>(w, item, scratch, start, last); \
    break;
      HAG_CASE(1)
      HAG_CASE(2)
      HAG_CASE(3)
      HAG_CASE(4)
      HAG_CASE(5)
      HAG_CASE(6)
      HAG_CASE(7)
      HAG_CASE(8)
#undef HAG_CASE
    }
  }
}

template <class T, bool HUB>
void run_reduce(const HagAggregate &w, int64_t item, void *scratch) {
  if (w.reduce == HAG_SUM && w.source_scale)
    return run_wide<T, HAG_SUM, true, HUB>(w, item, scratch);
  switch (w.reduce) {
#define HAG_CASE(NAME, name) \
  case HAG_##NAME:           \
    return run_wide<T, HAG_##NAME, false, HUB>(w, item, scratch);
    HAG_EVERY_REDUCER(HAG_CASE)
#undef HAG_CASE
  }
}

template <bool HUB>
void run(const HagAggregate &w, int64_t item, void *scratch) {
  switch (w.dtype) {
    case HAG_FLOAT32:
      return run_reduce<Float32, HUB>(w, item, scratch);
    case HAG_FLOAT64:
      return run_reduce<Float64, HUB>(w, item, scratch);
    case HAG_FLOAT16:
      return run_reduce<Float16, HUB>(w, item, scratch);
    case HAG_BFLOAT16:
      return run_reduce<BFloat16, HUB>(w, item, scratch);
  }
}

template <class Acc>
int64_t scratch_bytes(const HagAggregate &w, int64_t rows) {
  return rows * cut<Acc>(w.width, rows, w.scratch_budget).longest() * kVectorBytes;
}

// ---------------------------------------------------------------- gradients of max and min

template <class T, bool ONES, int L, int N>
struct MaskedBlock {
  typedef typename T::Elem Elem;
  typedef typename T::Acc Acc;
  typedef Vec<Acc, L> V;

  const HagMaskedSum &a;
  int64_t from, last;

  HAG_INLINE void load(const void *rows, int64_t i, V *v) const {
    const Elem *p = (const Elem *)rows + i * a.width + from;
    HAG_UNROLL for (int n = 0; n < N; ++n) v[n] = T::template load<L>(p + lane<N, L>(n, last));
  }

  // Of the edges k .. stop - 1 of row i, of which those from `loop` on are its self-loop.
  HAG_INLINE void reduce(int64_t i, int64_t k, int64_t stop, int64_t loop, const V *key,
                         V *acc) const {
    HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = V{};
    for (; k < stop; ++k) {
      const int64_t j = k < loop ? a.col[k] : i;
      if (a.loops == HAG_LOOPS_FILL && j == i && k < loop) continue;
      V other[N], v[N];
      load(a.key_source, j, other);
      if constexpr (!ONES) load(a.v, j, v);
      HAG_UNROLL for (int n = 0; n < N; ++n) {
        const V hit = other[n] == key[n] ? V{} + 1 : V{};
        // A product, not a choice: 0 * Inf must be NaN, as in torch's scatter_reduce backward.
        acc[n] = ONES ? acc[n] + hit : acc[n] + hit * v[n];
      }
    }
  }

  __attribute__((noinline)) void sum_of_sums(int64_t i, int64_t k, int64_t stop, int64_t loop,
                                             V *sum) const {
    V key[N], part[N];
    load(a.key_target, i, key);
    HAG_UNROLL for (int n = 0; n < N; ++n) sum[n] = V{};
    for (; k < stop; k += kTermsAtOnce) {
      reduce(i, k, stop - k < kTermsAtOnce ? stop : k + kTermsAtOnce, loop, key, part);
      HAG_UNROLL for (int n = 0; n < N; ++n) sum[n] += part[n];
    }
  }

  HAG_INLINE void row(int64_t i) const {
    const int64_t begin = a.row_ptr[i], end = a.row_ptr[i + 1];
    const int64_t stop = end + (a.loops != HAG_LOOPS_NONE && i < a.num_cols);
    V acc[N];
    if (stop - begin > kTermsAtOnce) {
      V sum[N];
      sum_of_sums(i, begin, stop, end, sum);
      HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = sum[n];
    } else {
      V key[N];
      load(a.key_target, i, key);
      reduce(i, begin, stop, end, key, acc);
    }
    Elem *out = (Elem *)a.out + i * a.width + from;
    HAG_UNROLL for (int n = 0; n < N; ++n) T::template store<L>(out + lane<N, L>(n, last), acc[n]);
  }
};

template <class T, bool ONES, int L, int N>
void masked_rows(const HagMaskedSum &a, int64_t first, int64_t stop, int64_t from, int64_t last) {
  const MaskedBlock<T, ONES, L, N> block{a, from, last};
  for (int64_t i = first; i < stop; ++i) block.row(i);
}

template <class T, bool ONES, int L, bool WIDEST>
void masked_sum(const HagMaskedSum &a, int64_t first, int64_t stop) {
  if constexpr (L >= 1) {
    if (a.width < L) return masked_sum<T, ONES, L / 2, false>(a, first, stop);
    const int64_t vectors = (a.width + L - 1) / L;
    for (int64_t from = 0; from < vectors;) {
      const int64_t start = from * L;
      const int64_t rest = a.width - L - start;  // where the row's last vector starts
      if constexpr (WIDEST) {
        if (vectors - from >= 4) {
          masked_rows<T, ONES, L, 4>(a, first, stop, start, rest < 3 * L ? rest : 3 * L);
          from += 4;
          continue;
        }
      }
      if (vectors - from >= 2) {
        masked_rows<T, ONES, L, 2>(a, first, stop, start, rest < L ? rest : L);
        from += 2;
      } else {
        // A lone last vector starts where it still fits in the row.
        masked_rows<T, ONES, L, 1>(a, first, stop, start, rest < 0 ? rest : 0);
        from += 1;
      }
    }
  }
}

template <class T>
void masked_sum_of(const HagMaskedSum &a, int64_t first, int64_t last) {
  constexpr int L = kVectorBytes / sizeof(typename T::Acc);
  if (a.v) masked_sum<T, false, L, true>(a, first, last);
  else masked_sum<T, true, L, true>(a, first, last);
}

}  // namespace

// ---------------------------------------------------------------- entry points

extern "C" {

int64_t HAG_ENTRY(hag_scratch_bytes_)(const HagAggregate *args, int64_t rows) {
  return args->dtype == HAG_FLOAT64 ? scratch_bytes<double>(*args, rows)
                                    : scratch_bytes<float>(*args, rows);
}

void HAG_ENTRY(hag_aggregate_tile_)(const HagAggregate *args, int64_t tile, void *scratch) {
  run<false>(*args, tile, scratch);
#if defined(__x86_64__)
  if (args->stream) _mm_sfence();  // before another thread may read y
#endif
}

void HAG_ENTRY(hag_aggregate_hub_)(const HagAggregate *args, int64_t hub) {
  run<true>(*args, hub, nullptr);
}

#define HAG_BY_DTYPE(call)                       \
  switch (args->dtype) {                         \
    case HAG_FLOAT32:                            \
      return call<Float32>(*args, first, last);  \
    case HAG_FLOAT64:                            \
      return call<Float64>(*args, first, last);  \
    case HAG_FLOAT16:                            \
      return call<Float16>(*args, first, last);  \
    case HAG_BFLOAT16:                           \
      return call<BFloat16>(*args, first, last); \
  }

void HAG_ENTRY(hag_masked_sum_)(const HagMaskedSum *args, int64_t first, int64_t last) {
  HAG_BY_DTYPE(masked_sum_of)
}

}  // extern "C"
