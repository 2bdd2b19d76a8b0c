// The kernels of edge weights, once for every instruction set: isa_*.cpp include this file after
// tile_rows.h, whose vectors and element types it uses.
#include "run/weighted_abi.h"

namespace {

// Calls body.run<L, N>(start, last) for all blocks of N <= MOST vectors of L lanes that cover a
// row.
template <class Acc, int MOST = kMaxVectors, int L = kVectorBytes / (int)sizeof(Acc), class Body>
HAG_INLINE void over_blocks(int64_t width, const Body &body) {
  constexpr bool widest = L == kVectorBytes / (int)sizeof(Acc);
  if constexpr (L > 1)
    if (width < L) return over_blocks<Acc, MOST, L / 2>(width, body);
  const int64_t vectors = (width + L - 1) / L, blocks = (vectors + MOST - 1) / MOST;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = b * vectors / blocks, to = (b + 1) * vectors / blocks;
    const int64_t start = from * L, rest = width - L - start;
    const int64_t last = rest < (to - from - 1) * L ? rest : (to - from - 1) * L;
    if (to - from == 1) body.template run<L, 1>(start, last);
    else if (to - from == 2) body.template run<L, 2>(start, last);
    else if constexpr (widest) switch (to - from) {
#define HAG_CASE(N)                                                \
  case N:                                                          \
    if constexpr (N <= MOST) body.template run<L, N>(start, last); \
    break;
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

template <class T, int L, int N>
struct WeightedBlock {
  typedef typename T::Elem Elem;
  typedef typename T::Acc Acc;
  typedef Vec<Acc, L> V;

  const HagWeightedSum &a;
  int64_t start, last;

  HAG_INLINE int64_t at(int n) const { return start + lane<N, L>(n, last); }

  HAG_INLINE void take(int64_t j, Acc weight, V *acc) const {
    if (a.source_scale) weight *= ((const Acc *)a.source_scale)[j];
    const Elem *x = (const Elem *)a.x + j * a.x_row_stride;
    HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] =
        multiply_add(V{} + weight, T::template load<L>(x + at(n)), acc[n]);
  }

  // Of the slots begin .. end - 1 of row i, added to `acc`.
  HAG_INLINE void add_slots(int64_t i, int64_t begin, int64_t end, V *acc) const {
    constexpr int64_t bytes = (int64_t)N * L * sizeof(Elem), distance = prefetch_distance(bytes);
    const Acc *weight = (const Acc *)a.weight;
    for (int64_t k = begin; k < end; ++k) {
      if (k + distance < a.num_edges) {
        const Elem *ahead = (const Elem *)a.x + a.col[k + distance] * a.x_row_stride + start;
        HAG_UNROLL for (int64_t b = 0; b < bytes; b += 64)
            __builtin_prefetch((const char *)ahead + b, 0, 3);
      }
      if (!a.skip_loops || a.col[k] != i) take(a.col[k], weight[k], acc);
    }
  }

  // Not inlined, see sum_of_sums in tile_rows.h.
  __attribute__((noinline)) void sum_of_sums(int64_t i, int64_t begin, int64_t end, V *sum) const {
    HAG_UNROLL for (int n = 0; n < N; ++n) sum[n] = V{};
    for (int64_t k = begin; k < end; k += kTermsAtOnce) {
      V part[N];
      HAG_UNROLL for (int n = 0; n < N; ++n) part[n] = V{};
      add_slots(i, k, end - k < kTermsAtOnce ? end : k + kTermsAtOnce, part);
      HAG_UNROLL for (int n = 0; n < N; ++n) sum[n] += part[n];
    }
  }

  // acc is 0 before it.
  HAG_INLINE void slots(int64_t i, int64_t begin, int64_t end, V *acc) const {
    if (end - begin <= kTermsAtOnce) return add_slots(i, begin, end, acc);
    V sum[N];
    sum_of_sums(i, begin, end, sum);
    HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = sum[n];
  }

  // `hub`: the first hub that is not below the row.
  HAG_INLINE void row(int64_t i, int64_t &hub) const {
    V acc[N];
    HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = V{};
    if (hub < a.num_hubs && a.hub_row[hub] == i) {
      for (int64_t p = a.hub_ptr[hub]; p < a.hub_ptr[hub + 1]; ++p)
        HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] +=
            load_as<V>((const Acc *)a.partial + p * a.width + at(n));
      ++hub;
    } else {
      slots(i, a.row_ptr[i], a.row_ptr[i + 1], acc);
    }
    if (a.loop_weight && i < a.num_loops) take(i, ((const Acc *)a.loop_weight)[i], acc);
    const Acc scale = a.target_scale ? ((const Acc *)a.target_scale)[i] : (Acc)1;
    HAG_UNROLL for (int n = 0; n < N; ++n)
        T::template store<L>((Elem *)a.y + i * a.width + at(n), acc[n] * scale);
  }
};

template <class T>
struct WeightedRows {
  const HagWeightedSum &a;
  int64_t first, stop;

  template <int L, int N>
  void run(int64_t start, int64_t last) const {
    const WeightedBlock<T, L, N> block{a, start, last};
    int64_t hub = 0;
    while (hub < a.num_hubs && a.hub_row[hub] < first) ++hub;
    for (int64_t i = first; i < stop; ++i) block.row(i, hub);
  }
};

template <class T>
void weighted_rows(const HagWeightedSum &a, int64_t first, int64_t last) {
  over_blocks<typename T::Acc>(a.width, WeightedRows<T>{a, first, last});
}

template <class T>
struct WeightedPart {
  const HagWeightedSum &a;
  int64_t row, begin, end;
  typename T::Acc *out;

  template <int L, int N>
  void run(int64_t start, int64_t last) const {
    const WeightedBlock<T, L, N> block{a, start, last};
    typename WeightedBlock<T, L, N>::V acc[N];
    HAG_UNROLL for (int n = 0; n < N; ++n) acc[n] = typename WeightedBlock<T, L, N>::V{};
    block.slots(row, begin, end, acc);
    HAG_UNROLL for (int n = 0; n < N; ++n) store_as(out + block.at(n), acc[n]);
  }
};

template <class T>
void weighted_part(const HagWeightedSum &a, int64_t row, int64_t begin, int64_t end, void *out) {
  typedef typename T::Acc Acc;
  over_blocks<Acc>(a.width, WeightedPart<T>{a, row, begin, end, (Acc *)out});
}

// ---------------------------------------------------------------- gradients of the weights

// <a, b> + the lanes of `sum`: whole vectors, then ever shorter ones, folded in halves.
template <class T, int L>
HAG_INLINE typename T::Acc dot(const typename T::Elem *a, const typename T::Elem *b, int64_t n,
                               Vec<typename T::Acc, L> sum) {
  for (; n >= L; n -= L, a += L, b += L)
    sum = multiply_add(T::template load<L>(a), T::template load<L>(b), sum);
  if constexpr (L == 1) {
    return sum[0];
  } else {
    typedef Vec<typename T::Acc, L / 2> Half;
    const typename T::Acc *lanes = (const typename T::Acc *)&sum;
    return dot<T, L / 2>(a, b, n, load_as<Half>(lanes) + load_as<Half>(lanes + L / 2));
  }
}

template <class T>
HAG_INLINE typename T::Acc edge(const HagEdgeDot &e, int64_t i, int64_t j) {
  typedef typename T::Elem Elem;
  typedef typename T::Acc Acc;
  const Elem *a = (const Elem *)e.a + j * e.width, *b = (const Elem *)e.b + i * e.width;
  constexpr int L = kVectorBytes / (int)sizeof(Acc);
  Acc sum = 0;
  for (int64_t m = 0; m < e.batch; ++m)
    sum += dot<T, L>(a + m * e.a_batch_stride, b + m * e.b_batch_stride, e.width, Vec<Acc, L>{});
  if (e.source_scale) sum *= ((const Acc *)e.source_scale)[j];
  if (e.target_scale) sum *= ((const Acc *)e.target_scale)[i];
  return sum;
}

HAG_INLINE void prefetch_bytes(const char *p, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 0, 3);
}

template <class T>
void edge_dot(const HagEdgeDot &e, int64_t row, int64_t begin, int64_t end) {
  typedef typename T::Acc Acc;
  const int64_t bytes = e.width * (int64_t)sizeof(typename T::Elem);
  const int64_t distance = prefetch_distance(bytes > 0 ? bytes : 1);
  for (int64_t k = begin, i = row; k < end; ++k) {
    while (k >= e.row_ptr[i + 1]) ++i;
    const int64_t j = e.col[k];
    if (k + distance < end) prefetch_bytes((const char *)e.a + e.col[k + distance] * bytes, bytes);
    ((Acc *)e.out)[k] = e.skip_loops && i == j ? 0 : edge<T>(e, i, j);
  }
}

template <class T>
void loop_dot(const HagEdgeDot &e, int64_t first, int64_t last, void *out) {
  typedef typename T::Acc Acc;
  for (int64_t i = first; i < last; ++i) ((Acc *)out)[i] = edge<T>(e, i, i);
}

}  // namespace

#define HAG_DISPATCH(call, ...)           \
  switch (args->dtype) {                  \
    case HAG_FLOAT32:                     \
      return call<Float32>(__VA_ARGS__);  \
    case HAG_FLOAT64:                     \
      return call<Float64>(__VA_ARGS__);  \
    case HAG_FLOAT16:                     \
      return call<Float16>(__VA_ARGS__);  \
    case HAG_BFLOAT16:                    \
      return call<BFloat16>(__VA_ARGS__); \
  }

extern "C" {

void HAG_ENTRY(hag_weighted_rows_)(const HagWeightedSum *args, int64_t first, int64_t last) {
  HAG_DISPATCH(weighted_rows, *args, first, last)
}

void HAG_ENTRY(hag_weighted_part_)(const HagWeightedSum *args, int64_t row, int64_t begin,
                                   int64_t end, void *out) {
  HAG_DISPATCH(weighted_part, *args, row, begin, end, out)
}

void HAG_ENTRY(hag_edge_dot_)(const HagEdgeDot *args, int64_t row, int64_t begin, int64_t end) {
  HAG_DISPATCH(edge_dot, *args, row, begin, end)
}

void HAG_ENTRY(hag_loop_dot_)(const HagEdgeDot *args, int64_t first, int64_t last, void *out) {
  HAG_DISPATCH(loop_dot, *args, first, last, out)
}

}  // extern "C"
