// Dot products and weighted sums of rows with several heads, for a run of edges.
//
// Rows are `heads` times `width` numbers. Narrow heads lie side by side in vectors; what a dot
// product leaves in the lanes of several vectors is added up at once, pair by pair of lanes.
// isa_*.cpp include this file.
#pragma once

#include "run/vectors.h"

namespace {

// ---------------------------------------------------------------- lanes

template <int... I>
struct Lanes {};
template <int N, int... I>
struct FirstLanes : FirstLanes<N - 1, N - 1, I...> {};
template <int... I>
struct FirstLanes<0, I...> {
  typedef Lanes<I...> type;
};

#if defined(__clang__)
#define HAG_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define HAG_PICK(a, b, ...) __builtin_shuffle(a, b, Vec<typename LaneOf<F>::type, L>{__VA_ARGS__})
#endif

template <class F>
struct LaneOf;
template <>
struct LaneOf<float> {
  typedef int32_t type;
};
template <>
struct LaneOf<double> {
  typedef int64_t type;
};

// Sums of neighbouring lanes: first those of a, then those of b.
template <class F, int L, int... I>
HAG_INLINE Vec<F, L> neighbours(Vec<F, L> a, Vec<F, L> b, Lanes<I...>) {
  return HAG_PICK(a, b, (2 * I)...) + HAG_PICK(a, b, (2 * I + 1)...);
}

// The sums of each S lanes of S vectors, in order.
template <class F, int L, int S>
HAG_INLINE Vec<F, L> folded(Vec<F, L> *v) {
  if constexpr (S == 1) return v[0];
  else {
    HAG_UNROLL for (int i = 0; i < S / 2; ++i) v[i] =
        neighbours<F, L>(v[2 * i], v[2 * i + 1], typename FirstLanes<L>::type());
    return folded<F, L, S / 2>(v);
  }
}

// Each of the first L / S lanes, S times.
template <class F, int L, int S, int... I>
HAG_INLINE Vec<F, L> repeated(Vec<F, L> v, Lanes<I...>) {
  return HAG_PICK(v, v, (I / S)...);
}

// ---------------------------------------------------------------- rows of edges

constexpr int64_t kFetchedRow = 4096;  // bytes of a row that is fetched ahead, at most

// Rows that the edges of a run name.
template <class F>
struct Rows {
  static constexpr bool has_two = false;
  const F *x;
  int64_t stride;
  const int32_t *at;
  int64_t left;  // ids that may be read from `at`, to fetch rows ahead; 0: they are near already
  int64_t ahead = 0;  // how far

  template <int L>
  HAG_INLINE Vec<F, L> get(int64_t b, int64_t offset) const {
    return load_as<Vec<F, L>>(x + at[b] * stride + offset);
  }
  HAG_INLINE void fetch(int64_t b) const {
    if (b + ahead >= left) return;
    const char *p = (const char *)(x + at[b + ahead] * stride);
    for (int64_t k = 0; k < stride * (int64_t)sizeof(F); k += 64) __builtin_prefetch(p + k, 0, 3);
  }
};

// Rows that are somewhere.
template <class F>
struct Pointers {
  static constexpr bool has_two = false;
  const F *const *row;
  template <int L>
  HAG_INLINE Vec<F, L> get(int64_t b, int64_t offset) const {
    return load_as<Vec<F, L>>(row[b] + offset);
  }
  HAG_INLINE void fetch(int64_t) const {}
};

template <class V, class F>
HAG_INLINE V leaky(V z, F slope) {
  return z > V{} ? z : z * slope;
}

// key + query + edge.
template <class F>
struct Vectors {
  static constexpr bool has_two = false;
  Rows<F> rows;
  const F *fixed;
  const F *const *edge;  // may be null
  F slope;

  template <int L>
  HAG_INLINE Vec<F, L> z(int64_t b, int64_t offset) const {
    Vec<F, L> z = load_as<Vec<F, L>>(fixed + offset) + rows.template get<L>(b, offset);
    if (edge) z += load_as<Vec<F, L>>(edge[b] + offset);
    return z;
  }
  HAG_INLINE void fetch(int64_t b) const { rows.fetch(b); }
};

template <class F>
struct LeakyOf : Vectors<F> {
  template <int L>
  HAG_INLINE Vec<F, L> get(int64_t b, int64_t offset) const {
    return leaky(this->template z<L>(b, offset), this->slope);
  }
};

// The slope, and what it makes of the sum: two rows of an edge.
template <class F>
struct BothOf : Vectors<F> {
  static constexpr bool has_two = true;
  template <int L>
  HAG_INLINE Vec<F, L> get(int64_t b, int64_t offset, Vec<F, L> &second) const {
    typedef Vec<F, L> V;
    const V z = this->template z<L>(b, offset);
    const V slope = z > V{} ? V{} + (F)1 : V{} + this->slope;
    second = slope * z;
    return slope;
  }
};

template <class F>
struct SlopeOf : Vectors<F> {
  template <int L>
  HAG_INLINE Vec<F, L> get(int64_t b, int64_t offset) const {
    typedef Vec<F, L> V;
    return this->template z<L>(b, offset) > V{} ? V{} + (F)1 : V{} + this->slope;
  }
};

// ---------------------------------------------------------------- dot products

template <class F>
constexpr int most_lanes() {
  return kVectorBytes / (int)sizeof(F);
}

// Whether vectors of L lanes cover rows of heads without a rest, each in one head or with whole
// heads in it.
inline bool covers(int64_t L, int64_t heads, int64_t width) {
  return heads * width % L == 0 && (width % L == 0 || L % width == 0);
}

// Rows of heads, and the vectors that they are worked on with. Made once for many runs: divisions
// take longer than a row of few edges does.
template <class F>
struct HeadsShape {
  int64_t heads, width;
  int64_t lanes;      // of a vector
  int64_t ahead = 0;  // how far rows are fetched ahead; 0: they are fetched as they are read
  bool is_by_heads;   // each head has vectors of its own, the last of which may be shorter

  HeadsShape(int64_t heads, int64_t width) : heads(heads), width(width) {
    int64_t own = lanes = most_lanes<F>();
    if (heads * width == 0) return;
    const int64_t bytes = heads * width * (int64_t)sizeof(F);
    if (bytes <= kFetchedRow) ahead = prefetch_distance(bytes);
    while (lanes > 1 && !covers(lanes, heads, width)) lanes /= 2;
    while (own > width) own /= 2;
    is_by_heads = lanes < own;
    if (is_by_heads) lanes = own;
  }

  int64_t numbers() const { return heads * width; }

  // Lanes of one head in a vector.
  int64_t summed() const { return !is_by_heads && width < lanes ? width : lanes; }
};

// out[b, h] = <fixed_h, rows.get(b)_h> of edges, run after run. `out` has room for a vector more.
template <class F, int L, int S>
struct Dots {
  typedef Vec<F, L> V;
  typedef Vec<typename LaneOf<F>::type, L> I;

  // The S vectors whose lanes are added up at once; how many there are.
  V part[S];
  int count = 0;
  F *out;

  HAG_INLINE void put(V v) {
    if constexpr (S == 1) {
      store_as(out, v);
      out += L;
    } else {
      part[count] = v;
      if (++count < S) return;
      store_as(out, folded<F, L, S>(part));
      out += L, count = 0;
    }
  }

  // Q: vectors of a head, each whole; 0: any number, the last of which may overlap the one before.
  template <int Q, class From>
  HAG_INLINE void heads(const From rows, const F *fixed, int64_t n, int64_t heads, int64_t width) {
    const int64_t last = width - L, rest = (width + L - 1) / L * L - width;
    I kept = {};  // lanes that the vector before has not
    if constexpr (Q == 0)
      for (int i = 0; i < L; ++i) kept[i] = i >= rest ? -1 : 0;
    for (int64_t b = 0; b < n; ++b) {
      rows.fetch(b);
      for (int64_t h = 0, start = 0; h < heads; ++h, start += width) {
        if constexpr (Q > 0) {
          V sum = load_as<V>(fixed + start) * rows.template get<L>(b, start);
          HAG_UNROLL for (int q = 1; q < Q; ++q) sum = multiply_add(
              load_as<V>(fixed + start + q * L), rows.template get<L>(b, start + q * L), sum);
          put(sum);
        } else {
          V sum = V{};
          for (int64_t v = 0; v < last; v += L)
            sum = multiply_add(load_as<V>(fixed + start + v), rows.template get<L>(b, start + v),
                               sum);
          const V product =
              load_as<V>(fixed + start + last) * rows.template get<L>(b, start + last);
          const I bits = load_as<I>(&product) & kept;
          put(sum + load_as<V>(&bits));
        }
      }
    }
  }

  template <class From>
  HAG_INLINE void run(const From rows, const F *fixed, int64_t n, int64_t H, int64_t width) {
    if constexpr (S < L) {
      const int64_t numbers = H * width;
      for (int64_t b = 0; b < n; ++b) {
        rows.fetch(b);
        for (int64_t v = 0; v < numbers; v += L)
          put(load_as<V>(fixed + v) * rows.template get<L>(b, v));
      }
    } else if (width == L) {
      heads<1>(rows, fixed, n, H, width);
    } else if (width == 2 * L) {
      heads<2>(rows, fixed, n, H, width);
    } else if (width == 4 * L) {
      heads<4>(rows, fixed, n, H, width);
    } else {
      heads<0>(rows, fixed, n, H, width);
    }
  }

  HAG_INLINE void finish() {
    if constexpr (S > 1) {
      if (count == 0) return;
      for (int i = count; i < S; ++i) part[i] = V{};
      store_as(out, folded<F, L, S>(part));
    }
  }
};

// runs(take) calls take(rows, fixed, n) for one run of edges after the other.
template <class F, class Runs>
HAG_INLINE void dots(const HeadsShape<F> &shape, F *out, const Runs &runs) {
  const int64_t heads = shape.heads, width = shape.width;
  if (width == 0) {
    runs([&](const auto &, const F *, int64_t n) {
      for (int64_t k = 0; k < n * heads; ++k) *out++ = 0;
    });
    return;
  }
  constexpr int W = most_lanes<F>();
  const int64_t L = shape.lanes, S = shape.summed();
#define HAG_CASE(LANES, SUMMED)                               \
  if constexpr (LANES <= W)                                   \
    if (L == LANES && S == SUMMED) {                          \
      Dots<F, LANES, SUMMED> all;                             \
      all.out = out;                                          \
      runs([&](const auto &rows, const F *fixed, int64_t n) { \
        all.run(rows, fixed, n, heads, width);                \
      });                                                     \
      return all.finish();                                    \
    }
#define HAG_CASES(SUMMED) HAG_CASE(16, SUMMED) HAG_CASE(8, SUMMED)
  HAG_CASES(1)
  HAG_CASES(2)
  HAG_CASES(4)
  HAG_CASES(8)
  HAG_CASE(16, 16)
  HAG_CASE(4, 1)
  HAG_CASE(4, 2)
  HAG_CASE(4, 4)
  HAG_CASE(2, 1)
  HAG_CASE(2, 2)
  HAG_CASE(1, 1)
#undef HAG_CASES
#undef HAG_CASE
}

template <class F, class From>
HAG_INLINE void dots(const From &rows, const F *fixed, int64_t n, const HeadsShape<F> &shape,
                     F *out) {
  dots(shape, out, [&](const auto &take) { take(rows, fixed, n); });
}

// ---------------------------------------------------------------- weighted sums

// out = sum over n edges of w[b, h] * rows.get(b)_h. `w` may be read up to a vector further. Where
// an edge has two rows, the same sum of the second ones is added to `second`.
template <class F, class From>
struct WeightedHeads {
  const From &rows;
  const F *w;
  int64_t n;
  const HeadsShape<F> &shape;
  F *out;
  bool add;  // to what is there
  F *second = nullptr;
  int64_t head = 0;            // that the next vector is in, where each is in one
  int64_t left = shape.width;  // numbers of it

  // N vectors of L lanes from `start`; S: heads of this width lie in each; 0: each is in one head.
  template <int L, int N, int S>
  void block(int64_t start) {
    typedef Vec<F, L> V;
    const From rows = this->rows;
    const int64_t heads = shape.heads, n = this->n;
    const F *of[N];
    HAG_UNROLL for (int i = 0; i < N; ++i) {
      if constexpr (S > 0) {
        of[i] = w + (start + i * L) / S;
      } else {
        of[i] = w + head;
        left -= L;
        if (left == 0) ++head, left = shape.width;
      }
    }
    V acc[N], other[N];
    HAG_UNROLL for (int i = 0; i < N; ++i) acc[i] = V{};
    if constexpr (From::has_two) HAG_UNROLL for (int i = 0; i < N; ++i) other[i] = V{};
    for (int64_t b = 0; b < n; ++b) {
      if (start == 0) rows.fetch(b);
      HAG_UNROLL for (int i = 0; i < N; ++i) {
        const F *p = of[i] + b * heads;
        V weight;
        if constexpr (S == 0) weight = V{} + *p;
        else weight = repeated<F, L, S>(load_as<V>(p), typename FirstLanes<L>::type());
        if constexpr (From::has_two) {
          V row;
          acc[i] = multiply_add(weight, rows.template get<L>(b, start + i * L, row), acc[i]);
          other[i] = multiply_add(weight, row, other[i]);
        } else {
          acc[i] = multiply_add(weight, rows.template get<L>(b, start + i * L), acc[i]);
        }
      }
    }
    // Sums of few edges are added: one after the other, a long row's would round too often.
    HAG_UNROLL for (int i = 0; i < N; ++i) {
      F *p = out + start + i * L;
      store_as(p, add ? load_as<V>(p) + acc[i] : acc[i]);
    }
    if constexpr (From::has_two) HAG_UNROLL for (int i = 0; i < N; ++i) {
        F *p = second + start + i * L;
        store_as(p, load_as<V>(p) + other[i]);
      }
  }

  template <int L, int S>
  void range(int64_t from, int64_t to) {
    if constexpr (L == most_lanes<F>()) {
      if constexpr (!From::has_two)  // whose sums would not fit the registers
        for (; from + 8 * L <= to; from += 8 * L) block<L, 8, S>(from);
      for (; from + 4 * L <= to; from += 4 * L) block<L, 4, S>(from);
    }
    for (; from + 2 * L <= to; from += 2 * L) block<L, 2, S>(from);
    if (from + L <= to) block<L, 1, S>(from), from += L;
    if constexpr (S == 0 && L > 1)
      if (from < to) range<L / 2, 0>(from, to);
  }

  template <int L>
  void flat() {
    const int64_t width = shape.width, numbers = shape.heads * width;
    if (width >= L) return range<L, 0>(0, numbers);
    if constexpr (L > 1)
      if (width == 1) return range<L, 1>(0, numbers);
    if constexpr (L > 2)
      if (width == 2) return range<L, 2>(0, numbers);
    if constexpr (L > 4)
      if (width == 4) return range<L, 4>(0, numbers);
    if constexpr (L > 8)
      if (width == 8) return range<L, 8>(0, numbers);
  }

  void run() {
    const int64_t width = shape.width, L = shape.lanes;
    if (width == 0) return;
    constexpr int W = most_lanes<F>();
    if (shape.is_by_heads) {
      for (int64_t h = 0; h < shape.heads; ++h) range<W, 0>(h * width, (h + 1) * width);
      return;
    }
    if constexpr (W >= 16)
      if (L == 16) return flat<16>();
    if constexpr (W >= 8)
      if (L == 8) return flat<8>();
    if constexpr (W >= 4)
      if (L == 4) return flat<4>();
    if (L == 2) return flat<2>();
    return flat<1>();
  }
};

template <class F, class From>
void weighted_heads(const From &rows, const F *w, int64_t n, const HeadsShape<F> &shape, F *out,
                    bool add, F *second = nullptr) {
  WeightedHeads<F, From>{rows, w, n, shape, out, add, second}.run();
}

}  // namespace
