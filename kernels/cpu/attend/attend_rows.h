// Attention, once for every instruction set: isa_*.cpp define HAG_ISA and include this file.
//
// The scores of a run of edges lie side by side, [n, heads], and are worked on a vector at a time:
// what belongs to heads is repeated until it fills whole vectors (Periodic).
#include "attend/attend_abi.h"
#include "attend/exponential.h"
#include "attend/heads.h"

namespace {

constexpr int64_t kSlack = 64;  // numbers that may be read or written past a run

// A row, or a part of a row, among the slots that are worked on at once.
struct Segment {
  int64_t row, at, n;  // its slots: n of those at once, from `at`
  bool add, last;      // whether there were parts of it before, and whether none follows
};
// Short rows are worked on together: what is done a slot then fills whole vectors.
struct Segments {
  static constexpr int64_t kMost = 64;  // no block has more edges
  int64_t begin, n, count;              // the slots, and how many segments these are
  Segment each[kMost];
};

template <class F>
class Attend {
  static constexpr int L = Whole<F>::L;
  typedef typename Whole<F>::V V;

 public:
  // attend.cpp knows how much of `scratch` is used (scratch_numbers).
  Attend(const HagAttend &args, void *scratch)
      : a(args),
        H(args.heads),
        values_(H, args.width),
        keys_(H, args.key_width),
        one_edge_(1, args.edge_width),
        one_key_(1, H * args.key_width),
        free_((F *)scratch) {
    int64_t x = H, y = L;
    while (y) {
      const int64_t rest = x % y;
      x = y, y = rest;
    }
    period_ = H / x;
    constexpr int64_t kFew = 8;  // vectors: the last one of so many may be filled badly
    short_ = kFew * L / H < a.block ? kFew * L / H : a.block;
    if (short_ < 1) short_ = 1;
  }

  F *take(int64_t numbers) {
    F *p = free_;
    free_ += (numbers + kSlack - 1) / kSlack * kSlack;
    return p;
  }
  F *run_of(int64_t edges) { return take(edges * H + kSlack); }
  F *periodic() { return take(period_ * L); }

  // ---------------------------------------------------------------- what is of heads

  // What is of heads is written and read as whole vectors: a load that spans several stores waits
  // for all of them.
  void repeat(const F *of_heads, F *out) const {
    if (period_ == 1) return store_as(out, repeated_heads(of_heads));
    for (int64_t k = 0, h = 0; k < period_ * L; ++k) {
      out[k] = of_heads[h];
      if (++h == H) h = 0;
    }
  }

  template <int N>
  HAG_INLINE static V repeated_first(const F *p) {
    if constexpr (N == 1) {
      return V{} + *p;
    } else if constexpr (N > L) {
      return V{};
    } else {
      V v = {};
      __builtin_memcpy(&v, p, N * sizeof(F));
      return cycled<N>(v, typename FirstLanes<L>::type());
    }
  }
  template <int N, int... I>
  HAG_INLINE static V cycled(V v, Lanes<I...>) {
    return HAG_PICK(v, v, (I % N)...);
  }
  HAG_INLINE V repeated_heads(const F *p) const {  // where heads fill whole vectors
    switch (H) {
      case 1:
        return repeated_first<1>(p);
      case 2:
        return repeated_first<2>(p);
      case 4:
        return repeated_first<4>(p);
      case 8:
        return repeated_first<8>(p);
      default:
        return load_as<V>(p);
    }
  }

  // Lane by lane with the one `Half` further, then half as far, until heads are left.
  template <int Half, class Join>
  HAG_INLINE V joined(V v, const Join &join) const {
    if constexpr (Half > 0) {
      if (Half < H) return v;
      return joined<Half / 2>(join(v, shifted<Half>(v, typename FirstLanes<L>::type())), join);
    }
    return v;
  }
  template <int By, int... I>
  HAG_INLINE static V shifted(V v, Lanes<I...>) {
    return HAG_PICK(v, v, ((I + By) % L)...);
  }
  HAG_INLINE void store_heads(F *out, V v) const {
    if (H == 1) return store_as(out, v[0]);
    if constexpr (L >= 2)
      if (H == 2) return copy<2>(out, (const F *)&v, 2);
    if constexpr (L >= 4)
      if (H == 4) return copy<4>(out, (const F *)&v, 4);
    for (int64_t h = 0; h < H; ++h) out[h] = v[h];
  }

  // body(offset, offset in what is periodic) for all vectors of a run of n edges.
  template <class Body>
  HAG_INLINE void each(int64_t n, const Body &body) const {
    const int64_t whole = period_ * L;
    for (int64_t k = 0, p = 0; k < n * H; k += L) {
      body(k, p);
      p = p + L == whole ? 0 : p + L;
    }
  }

  // A row of few edges is read edge by edge: what lies in a vector beside its numbers would have to
  // be masked.
  static constexpr int64_t kFewEdges = 8;
  template <int N>
  struct Heads {
    static constexpr int count = N;
  };

  // Runs all(Heads<N>()) where the heads of an edge, N, are a vector; false: they are none.
  template <class All>
  HAG_INLINE bool with_heads(const All &all) const {
    switch (H) {
#define HAG_CASE(N)                    \
  case N:                              \
    if constexpr (N > L) return false; \
    else return all(Heads<N>()), true;
      HAG_CASE(1)
      HAG_CASE(2)
      HAG_CASE(4)
      HAG_CASE(8)
#undef HAG_CASE
    }
    return false;
  }

  // What join(x, y) makes of the numbers of n edges, from `first` on, for each head.
  template <class Join>
  HAG_INLINE bool joined_edges(const F *s, int64_t n, F first, F *out, bool add,
                               const Join &join) const {
    return n <= kFewEdges && with_heads([&](auto heads) {
             typedef Vec<F, decltype(heads)::count> W;
             W all = add ? load_as<W>(out) : W{} + first;
             for (int64_t b = 0; b < n; ++b)
               all = join(all, load_as<W>(s + b * decltype(heads)::count));
             store_as(out, all);
           });
  }

  // What is of heads, at each of n edges; up to a vector more is written.
  HAG_INLINE void spread(const F *of_heads, int64_t n, F *out, F *repeated) const {
    if (period_ == 1) {
      const V v = repeated_heads(of_heads);
      for (int64_t k = 0; k < n * H; k += L) store_as(out + k, v);
      return;
    }
    repeat(of_heads, repeated);
    each(n, [&](int64_t k, int64_t p) { store_as(out + k, load_as<V>(repeated + p)); });
  }

  // out[h] = sum over the edges of s[b, h]; or added to it.
  HAG_INLINE void sum_heads(const F *s, int64_t n, F *lanes, F *out, bool add) const {
    if (!joined_edges(s, n, 0, out, add, [](auto x, auto y) { return x + y; }))
      sum_of_many(s, n, lanes, out, add);
  }
  void sum_of_many(const F *s, int64_t n, F *lanes, F *out, bool add) const {
    if (period_ == 1) {
      const int64_t numbers = n * H, whole = numbers / L * L;
      V sum = {};
      for (int64_t k = 0; k < whole; k += L) sum += load_as<V>(s + k);
      if (whole < numbers) sum += first_lanes(load_as<V>(s + whole), numbers - whole);
      sum = joined<L / 2>(sum, [](V x, V y) { return x + y; });
      if (add) sum += repeated_heads(out);
      return store_heads(out, sum);
    }
    for (int64_t k = 0; k < period_ * L; ++k) lanes[k] = 0;
    const int64_t numbers = n * H, whole = numbers / L * L;
    int64_t p = 0;
    for (int64_t k = 0; k < whole; k += L) {
      store_as(lanes + p, load_as<V>(lanes + p) + load_as<V>(s + k));
      p = p + L == period_ * L ? 0 : p + L;
    }
    for (int64_t k = whole; k < numbers; ++k) lanes[p + k - whole] += s[k];
    for (int64_t half = period_ * L / 2; half >= H; half /= 2)
      for (int64_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    for (int64_t h = 0; h < H; ++h) out[h] = add ? out[h] + lanes[h] : lanes[h];
  }

  // The first lanes of a vector; the others are 0.
  HAG_INLINE static V first_lanes(V v, int64_t count) {
    return first_of(v, count, typename FirstLanes<L>::type());
  }
  template <int... I>
  HAG_INLINE static V first_of(V v, int64_t count, Lanes<I...>) {
    typedef Vec<typename LaneOf<F>::type, L> Places;
    const Places places = {I...}, bits = load_as<Places>(&v) & (places < (Places{} + (int)count));
    return load_as<V>(&bits);
  }

  // The largest of each head; NaN is passed over: it comes back with the exponentials. What lies
  // behind the run may be written to.
  void largest(F *s, int64_t n, F *lanes, F *out) const {
    const F least = -__builtin_inf();
    if (period_ == 1) {
      V most = V{} + least;
      const auto larger = [](V x, V y) { return y > x ? y : x; };
      const int64_t numbers = n * H, whole = numbers / L * L;
      for (int64_t k = 0; k < whole; k += L) most = larger(most, load_as<V>(s + k));
      if (whole < numbers) {
        const V rest = load_as<V>(s + whole), among = first_lanes(V{} + (F)1, numbers - whole);
        most = larger(most, among > V{} ? rest : V{} + least);
      }
      return store_heads(out, joined<L / 2>(most, larger));
    }
    for (int64_t k = 0; k < period_ * L; ++k) lanes[k] = least;
    for (int64_t k = n * H, end = (n * H + L - 1) / L * L; k < end; ++k) s[k] = least;
    each(n, [&](int64_t k, int64_t p) {
      const V v = load_as<V>(s + k), m = load_as<V>(lanes + p);
      store_as(lanes + p, v > m ? v : m);
    });
    for (int64_t half = period_ * L / 2; half >= H; half /= 2)
      for (int64_t k = 0; k < half; ++k)
        lanes[k] = lanes[k + half] > lanes[k] ? lanes[k + half] : lanes[k];
    for (int64_t h = 0; h < H; ++h) out[h] = lanes[h];
  }

  // The same of a row of a group, behind which others lie; 0 where it has no edges.
  void largest_of(F *s, int64_t n, F *lanes, F *out) const {
    if (n == 0) return clear(out, H);
    const auto larger = [](auto x, auto y) { return y > x ? y : x; };
    if (joined_edges(s, n, -__builtin_inf(), out, false, larger)) return;
    const V behind = load_as<V>(s + n * H);
    largest(s, n, lanes, out);
    store_as(s + n * H, behind);
  }

  // ---------------------------------------------------------------- what is of edges

  HAG_INLINE int64_t place(int64_t slot) const { return a.place ? a.place[slot] : slot; }
  HAG_INLINE int64_t users(int64_t slot) const {
    return a.order ? a.order[place(slot)] : place(slot);
  }

  template <int N>
  HAG_INLINE static void copy(F *to, const F *from, int64_t numbers) {
    if constexpr (N > 0) __builtin_memcpy(to, from, N * sizeof(F));
    else
      for (int64_t h = 0; h < numbers; ++h) to[h] = from[h];
  }

  // move<N>(b) for n edges; N is the number of heads, or 0 for any.
  template <class Move>
  HAG_INLINE void by_heads(int64_t n, const Move &move) const {
    switch (H) {
#define HAG_CASE(N)                                                 \
  case N:                                                           \
    for (int64_t b = 0; b < n; ++b) move.template operator()<N>(b); \
    return;
      HAG_CASE(1)
      HAG_CASE(2)
      HAG_CASE(4)
      HAG_CASE(8)
#undef HAG_CASE
    }
    for (int64_t b = 0; b < n; ++b) move.template operator()<0>(b);
  }

  template <class At>
  struct Gather {
    F *to;
    const F *from;
    int64_t stride, H;
    const At &at;
    template <int N>
    HAG_INLINE void operator()(int64_t b) const {
      copy<N>(to + b * H, from + at(b) * stride, H);
    }
  };
  template <class At>
  struct Scatter {
    F *to;
    const F *from;
    int64_t H;
    const At &at;
    template <int N>
    HAG_INLINE void operator()(int64_t b) const {
      copy<N>(to + at(b) * H, from + b * H, H);
    }
  };

  // Vectors of lanes of a type T, Q of which make the heads of an edge.
  template <class T, int Q, class At>
  HAG_INLINE void gather_lanes(F *to, const F *from, int64_t stride, int64_t n,
                               const At &at) const {
    constexpr int W = kVectorBytes / (int)sizeof(T), kEdges = W / Q;
    static_assert(kEdges > 0, "a vector holds the heads of an edge");
    const auto put = [&](int64_t b, int64_t last) {
      const auto lane = [&](int i) {
        const int64_t edge = b + i / Q < last ? b + i / Q : last;
        T value;
        __builtin_memcpy(&value, (const char *)(from + at(edge) * stride) + i % Q * sizeof(T),
                         sizeof(T));
        return value;
      };
      store_as((char *)(to + b * H), built<T, W>(lane, typename FirstLanes<W>::type()));
    };
    int64_t b = 0;
    for (; b + kEdges <= n; b += kEdges) put(b, b + kEdges);  // none is behind the last
    if (b < n) put(b, n - 1);
  }
  template <class T, int W, class Lane, int... I>
  HAG_INLINE static Vec<T, W> built(const Lane &lane, Lanes<I...>) {
    return Vec<T, W>{lane(I)...};
  }

  // to[b] = from[at(b)], rows of H numbers that lie `stride` apart; up to a vector more is written.
  template <class At>
  void gather(F *to, const void *from, int64_t stride, int64_t n, const At &at) const {
    constexpr int kPair = sizeof(double) / sizeof(F);
    const F *p = (const F *)from;
    if (H == 1) return gather_lanes<F, 1>(to, p, stride, n, at);
    if (H == 2) return gather_lanes<double, 2 / kPair>(to, p, stride, n, at);
    if constexpr (4 <= L)
      if (H == 4) return gather_lanes<double, 4 / kPair>(to, p, stride, n, at);
    by_heads(n, Gather<At>{to, p, stride, H, at});
  }
  template <class At>
  void scatter(void *to, const F *from, int64_t n, const At &at) const {
    by_heads(n, Scatter<At>{(F *)to, from, H, at});
  }

  HAG_INLINE Rows<F> rows_of(const void *x, const HeadsShape<F> &shape, int64_t begin,
                             bool ahead) const {
    const int64_t left = ahead && shape.ahead ? a.num_edges - begin : 0;
    return {(const F *)x, shape.numbers(), a.col + begin, left, shape.ahead};
  }

  // The edges' own terms of "vector" from slot `begin`, and where they are.
  const F *const *vectors_of_edges(int64_t begin, int64_t n) {
    if (!a.edges) return nullptr;
    const int64_t numbers = H * a.key_width, stride = a.projection ? a.edge_width : numbers;
    for (int64_t b = 0; b < n; ++b) {
      const F *edge = (const F *)a.edges + users(begin + b) * stride;
      edge_[b] = edge;
      if (!a.projection) continue;
      const OneRow all{(const F *)a.projection, numbers};
      F *row = projected_ + b * numbers;
      for (int64_t k = 0; k < numbers; ++k) row[k] = 0;
      // One head with a weight for each row of the projection.
      weighted_heads(all, edge, a.edge_width, one_key_, row, false);
      projected_at_[b] = row;
    }
    return a.projection ? projected_at_ : edge_;
  }

  struct OneRow {  // the rows of a matrix
    static constexpr bool has_two = false;
    const F *x;
    int64_t stride;
    template <int M>
    HAG_INLINE Vec<F, M> get(int64_t b, int64_t offset) const {
      return load_as<Vec<F, M>>(x + b * stride + offset);
    }
    HAG_INLINE void fetch(int64_t) const {}
  };

  Pointers<F> edge_rows(int64_t begin, int64_t n) {
    for (int64_t b = 0; b < n; ++b) edge_[b] = (const F *)a.edges + users(begin + b) * a.edge_width;
    return {edge_};
  }

  void prepare_edges() {  // an address is no longer than two numbers
    edge_ = (const F **)take(2 * a.block);
    projected_at_ = (const F **)take(2 * a.block);
    if (a.projection) projected_ = take(a.block * H * a.key_width + kSlack);
  }

  // ---------------------------------------------------------------- scores

  // s[b, h] of the edges of segments before the leaky ReLU, without the term of edges of "dot".
  // `fixed`: keys or queries of the rows' own nodes; `others`: those of the others. `spread_out`
  // has room for a run.
  void scores(const void *fixed, const void *others, const Segments &of, F *s, F *other,
              F *spread_out, F *repeated) {
    const int64_t n = of.n, numbers = key_numbers();
    const int32_t *col = a.col + of.begin;
    const auto node = [&](int64_t b) { return (int64_t)col[b]; };
    const auto user = [&](int64_t b) { return users(of.begin + b); };
    bool bias = a.bias != nullptr;
    switch (a.score) {
      case HAG_SCORE_GIVEN:
        gather(s, a.bias, H, n, user);
        bias = false;
        break;
      case HAG_SCORE_SUM:
        if (others) gather(s, others, H, n, node);
        else each(n, [&](int64_t k, int64_t) { store_as(s + k, V{}); });
        if (fixed) {
          for_each(of, [&](const Segment &part) {
            spread(this->of(fixed, part.row, H), part.n, spread_out + part.at * H, repeated);
          });
          add_run(s, spread_out, n);
        }
        break;
      case HAG_SCORE_VECTOR:
        dots(keys_, s, [&](const auto &take) {
          for_each(of, [&](const Segment &part) {
            const F *own = this->of(fixed, part.row, numbers);
            take(LeakyOf<F>{vectors(own, others, of.begin + part.at, part.n, true)},
                 (const F *)a.weight, part.n);
          });
        });
        break;
      default:
        dots(keys_, s, [&](const auto &take) {
          for_each(of, [&](const Segment &part) {
            take(rows_of(others, keys_, of.begin + part.at, true),
                 this->of(fixed, part.row, numbers), part.n);
          });
        });
    }
    if (!bias) return;
    gather(other, a.bias, H, n, user);
    add_run(s, other, n);
  }

  template <class Body>
  HAG_INLINE static void for_each(const Segments &of, const Body &body) {
    for (int64_t i = 0; i < of.count; ++i)
      if (of.each[i].n > 0) body(of.each[i]);
  }
  HAG_INLINE void add_run(F *to, const F *from, int64_t n) const {
    each(n,
         [&](int64_t k, int64_t) { store_as(to + k, load_as<V>(to + k) + load_as<V>(from + k)); });
  }

  int64_t key_numbers() const { return a.score == HAG_SCORE_SUM ? H : H * a.key_width; }

  // together(segments) for short rows, alone(row, begin, end) for long ones; hubs are left out.
  template <class Together, class Alone>
  HAG_INLINE void each_group(int64_t first, int64_t last, const Together &together,
                             const Alone &alone) const {
    for (int64_t i = first; i < last;) {
      const int64_t begin = a.row_ptr[i], length = a.row_ptr[i + 1] - begin;
      if (length > short_) {
        if (length <= a.longest) alone(i, begin, begin + length);
        ++i;
        continue;
      }
      Segments group;
      group.begin = begin, group.count = 0;
      int64_t at = 0;
      for (; i < last && group.count < a.block; ++i) {
        const int64_t n = a.row_ptr[i + 1] - a.row_ptr[i];
        if (n > short_ || at + n > a.block) break;
        group.each[group.count++] = {i, at, n, false, true};
        at += n;
      }
      group.n = at;
      together(group);
    }
  }
  template <class Body>
  HAG_INLINE void each_part(int64_t row, int64_t begin, int64_t end, const Body &body) const {
    Segments part;
    for (int64_t k = begin; k < end; k += a.block) {
      const int64_t n = k + a.block < end ? a.block : end - k;
      part.begin = k, part.n = n, part.count = 1;
      part.each[0] = {row, 0, n, k > begin, k + n == end};
      body(part);
    }
  }

  Vectors<F> vectors(const F *fixed, const void *others, int64_t begin, int64_t n, bool ahead) {
    return {rows_of(others, keys_, begin, ahead), fixed, vectors_of_edges(begin, n), (F)a.slope};
  }

  bool sloped() const { return a.score != HAG_SCORE_VECTOR && a.slope != 1.0; }

  // out[b, h] += <fixed_h, edges_b>; `column` has room for a run of one head.
  void add_edge_dots(const F *fixed, int64_t begin, int64_t n, F *out, F *column) {
    const Pointers<F> edges = edge_rows(begin, n);
    for (int64_t h = 0; h < H; ++h) {
      dots(edges, fixed + h * a.edge_width, n, one_edge_, column);
      for (int64_t b = 0; b < n; ++b) out[b * H + h] += column[b];
    }
  }

  // out[h] = sum over n edges of w[b, h] edges_b, or added to it.
  void sum_edges(const F *w, int64_t begin, int64_t n, F *out, bool add, F *column) {
    const Pointers<F> edges = edge_rows(begin, n);
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t b = 0; b < n; ++b) column[b] = w[b * H + h];
      weighted_heads(edges, column, n, one_edge_, out + h * a.edge_width, add);
    }
  }

  // ---------------------------------------------------------------- forward

  const F *of(const void *x, int64_t row, int64_t numbers) const {
    return x ? (const F *)x + row * numbers : nullptr;
  }

  struct Forward {
    F *other, *spread, *repeated, *lanes;
  };
  Forward prepare() {
    prepare_edges();
    return {run_of(a.block), run_of(a.block), periodic(), periodic()};
  }

  // The scores of segments, with their leaky ReLU.
  void run_scores(const Forward &f, const Segments &of, F *s) {
    scores(a.query, a.key, of, s, f.other, f.spread, f.repeated);
    if (a.edge_query)
      for_each(of, [&](const Segment &part) {
        add_edge_dots(this->of(a.edge_query, part.row, H * a.edge_width), of.begin + part.at,
                      part.n, s + part.at * H, f.other);
      });
    if (sloped())
      each(of.n,
           [&](int64_t k, int64_t) { store_as(s + k, leaky(load_as<V>(s + k), (F)a.slope)); });
  }

  // The scores of all slots of a row's part, and the largest.
  void part_scores(Forward &f, int64_t row, int64_t begin, int64_t end, F *s, F *most) {
    each_part(row, begin, end,
              [&](const Segments &of) { run_scores(f, of, s + (of.begin - begin) * H); });
    if (a.normalise == HAG_NORMALISE_SOFTMAX) largest(s, end - begin, f.lanes, most);
  }

  // Of scores, what softmax and tanh make of them; most_at(offset, offset in what is periodic).
  template <class Most>
  HAG_INLINE void soften(F *s, int64_t n, const Most &most_at) const {
    if (a.normalise == HAG_NORMALISE_SOFTMAX)
      each(n, [&](int64_t k, int64_t p) {
        store_as(s + k, exponential<F>(load_as<V>(s + k) - load_as<V>(most_at(k, p))));
      });
    else if (a.normalise == HAG_NORMALISE_TANH)
      each(n,
           [&](int64_t k, int64_t) { store_as(s + k, hyperbolic_tangent<F>(load_as<V>(s + k))); });
  }

  void apply_mask(const Forward &f, F *s, int64_t begin, int64_t n) const {
    gather(f.other, a.mask, H, n, [&](int64_t b) { return users(begin + b); });
    for (int64_t b = 0; b < n * H; ++b) s[b] *= f.other[b];
  }

  // Whether the rows of values are to be fetched: those of "vector" may be the keys, read before.
  bool fetches_values() const { return a.score != HAG_SCORE_VECTOR || a.value != a.key; }

  // What becomes of the scores of a part: the total of the exponentials, and the weighted sums
  // [H, width], then [H, edge_width].
  void part_sums(Forward &f, int64_t begin, int64_t end, F *s, const F *most, F *total, F *sums) {
    const int64_t n = end - begin;
    const bool soft = a.normalise == HAG_NORMALISE_SOFTMAX;
    if (soft) repeat(most, f.repeated);
    soften(s, n, [&](int64_t, int64_t p) { return f.repeated + p; });
    if (soft) sum_heads(s, n, f.lanes, total, false);
    for (int64_t k = begin; a.mask && k < end; k += a.block)
      apply_mask(f, s + (k - begin) * H, k, k + a.block < end ? a.block : end - k);
    weighted_heads(rows_of(a.value, values_, begin, fetches_values()), s, n, values_, sums, false);
    for (int64_t k = begin; a.edge_query && k < end; k += a.block)
      sum_edges(s + (k - begin) * H, k, k + a.block < end ? a.block : end - k, sums + H * a.width,
                k > begin, f.other);
  }

  // 1 / the totals of rows, in their place; up to a vector more is written.
  void invert(F *totals, int64_t rows) const {
    for (int64_t k = 0; k < rows * H; k += L)
      store_as(totals + k, (F)1 / (load_as<V>(totals + k) + (F)1e-16));
  }

  void keep(int64_t row, const F *most, const F *inverse) const {
    if (!a.kept) return;
    F *kept = (F *)a.kept + row * 2 * H;
    const bool soft = a.normalise == HAG_NORMALISE_SOFTMAX;
    for (int64_t h = 0; h < H; ++h) {
      kept[h] = soft ? most[h] : (F)0;
      kept[H + h] = soft ? inverse[h] : (F)1;
    }
  }

  int64_t result_width() const { return a.width + (a.edge_query ? a.edge_width : 0); }

  // A row of the result: sums times a number of each head; null: as they are.
  void put(int64_t row, const F *sums, const F *by) const {
    const int64_t C = a.width, D = result_width() - C;
    F *y = (F *)a.y + row * H * (C + D);
    for (int64_t h = 0; h < H; ++h) {
      const F factor = by ? by[h] : (F)1;
      for (int64_t c = 0; c < C; ++c) y[h * (C + D) + c] = sums[h * C + c] * factor;
      for (int64_t d = 0; d < D; ++d) y[h * (C + D) + C + d] = sums[H * C + h * D + d] * factor;
    }
  }

  struct Sums {
    F *mosts, *totals;  // of each row of a group: the largest score, the sum of exponentials
    F *sums;            // of a row
  };

  // What is of rows, at each of their edges.
  HAG_INLINE void spread_rows(const Segments &of, const F *of_rows, F *out, F *repeated) const {
    for (int64_t i = 0; i < of.count; ++i)
      spread(of_rows + i * H, of.each[i].n, out + of.each[i].at * H, repeated);
  }

  // The exponentials are divided by their sum before they weigh the values, as stock does it.
  void group(const Forward &f, const Segments &of, F *s, const Sums &to) {
    const bool soft = a.normalise == HAG_NORMALISE_SOFTMAX;
    run_scores(f, of, s);
    if (soft) {
      for (int64_t i = 0; i < of.count; ++i)
        largest_of(s + of.each[i].at * H, of.each[i].n, f.lanes, to.mosts + i * H);
      spread_rows(of, to.mosts, f.spread, f.repeated);
    }
    soften(s, of.n, [&](int64_t k, int64_t) { return f.spread + k; });
    if (soft) {
      for (int64_t i = 0; i < of.count; ++i)
        sum_heads(s + of.each[i].at * H, of.each[i].n, f.lanes, to.totals + i * H, false);
      invert(to.totals, of.count);
      spread_rows(of, to.totals, f.spread, f.repeated);
      each(of.n, [&](int64_t k, int64_t) {
        store_as(s + k, load_as<V>(s + k) * load_as<V>(f.spread + k));
      });
    }
    if (a.mask) apply_mask(f, s, of.begin, of.n);
    for (int64_t i = 0; i < of.count; ++i) {
      const Segment &part = of.each[i];
      const int64_t begin = of.begin + part.at;
      F *own = s + part.at * H;
      F *sums = a.edge_query ? to.sums : (F *)a.y + part.row * H * a.width;
      keep(part.row, to.mosts + i * H, to.totals + i * H);
      weighted_heads(rows_of(a.value, values_, begin, fetches_values()), own, part.n, values_, sums,
                     false);
      if (!a.edge_query) continue;
      sum_edges(own, begin, part.n, sums + H * a.width, false, f.other);
      put(part.row, sums, nullptr);
    }
  }

  void rows(int64_t first, int64_t last) {
    Forward f = prepare();
    F *s = run_of(a.longest > a.block ? a.longest : a.block);
    const Sums to{run_of(a.block), run_of(a.block), take(H * (a.width + a.edge_width))};
    each_group(
        first, last, [&](const Segments &of) { group(f, of, s, to); },
        [&](int64_t row, int64_t begin, int64_t end) {
          part_scores(f, row, begin, end, s, to.mosts);
          part_sums(f, begin, end, s, to.mosts, to.totals, to.sums);
          if (a.normalise == HAG_NORMALISE_SOFTMAX) invert(to.totals, 1);
          keep(row, to.mosts, to.totals);
          put(row, to.sums, a.normalise == HAG_NORMALISE_SOFTMAX ? to.totals : nullptr);
        });
  }

  // ---------------------------------------------------------------- backward

  // What the gradients of a run of edges are made of: the scores before their leaky ReLU, what is
  // made of them, and <grad_i, value_j> times the mask. Later, the gradients by the scores.
  struct Edges {
    F *s, *p, *g;
    Edges operator+(int64_t numbers) const { return {s + numbers, p + numbers, g + numbers}; }
  };
  Edges edges_in(F *room, int64_t edges) const {
    const int64_t numbers = edges * H + kSlack;
    return {room, room + numbers, room + 2 * numbers};
  }

  const F *kept_of(int64_t row) const { return (const F *)a.kept + row * 2 * H; }

  // Up to a vector more is written than the numbers of these segments. What values count is kept
  // for the sums by source.
  void edges_of(const Forward &f, const Segments &of, const Edges &to) {
    const int64_t n = of.n;
    const F slope = sloped() ? (F)a.slope : (F)1;
    const auto user = [&](int64_t b) { return users(of.begin + b); };
    const auto spread_kept = [&](int64_t offset) {
      for (int64_t i = 0; i < of.count; ++i)
        spread(kept_of(of.each[i].row) + offset, of.each[i].n, f.spread + of.each[i].at * H,
               f.repeated);
    };
    scores(a.query, a.key, of, to.s, f.other, f.spread, f.repeated);
    dots(values_, to.g, [&](const auto &take) {
      for_each(of, [&](const Segment &part) {
        take(rows_of(a.value, values_, of.begin + part.at, fetches_values()),
             this->of(a.grad, part.row, H * a.width), part.n);
      });
    });
    if (a.edge_query)
      for_each(of, [&](const Segment &part) {
        const int64_t begin = of.begin + part.at, numbers = H * a.edge_width;
        add_edge_dots(this->of(a.edge_query, part.row, numbers), begin, part.n, to.s + part.at * H,
                      f.other);
        add_edge_dots(this->of(a.grad_edges, part.row, numbers), begin, part.n, to.g + part.at * H,
                      f.other);
      });
    each(n, [&](int64_t v, int64_t) { store_as(to.p + v, leaky(load_as<V>(to.s + v), slope)); });
    const bool soft = a.normalise == HAG_NORMALISE_SOFTMAX;
    if (soft) spread_kept(0);
    soften(to.p, n, [&](int64_t v, int64_t) { return f.spread + v; });
    if (soft) {
      spread_kept(H);
      product(to.p, f.spread, n, to.p);
    }
    const F *share = to.p;
    if (a.d_mask) {
      product(to.p, to.g, n, f.other);
      scatter(a.d_mask, f.other, n, user);
    }
    if (a.mask) {
      gather(f.other, a.mask, H, n, user);
      product(to.g, f.other, n, to.g);
      product(to.p, f.other, n, f.other);
      share = f.other;
    }
    keep_run((F *)a.shares, share, of.begin, n);
  }

  HAG_INLINE void product(const F *x, const F *y, int64_t n, F *out) const {
    each(n, [&](int64_t v, int64_t) { store_as(out + v, load_as<V>(x + v) * load_as<V>(y + v)); });
  }
  // Other threads may write what lies behind.
  HAG_INLINE void keep_run(F *to, const F *from, int64_t begin, int64_t n) const {
    __builtin_memcpy(to + begin * H, from, n * H * sizeof(F));
  }

  // inner[i, h] of segments, if it is given: whether it is.
  bool copy_inner(const Segments &of, F *inner) const {
    for (int64_t i = 0; a.inner && i < of.count; ++i)
      __builtin_memcpy(inner + i * H, (const F *)a.inner + of.each[i].row * H, H * sizeof(F));
    return a.inner;
  }

  // inner[i, h]: the sum over a segment's edges of p times its gradient; or added to it.
  void inner_of(const Forward &f, const Segments &of, const Edges &edges, F *inner) const {
    if (copy_inner(of, inner)) return;
    product(edges.p, edges.g, of.n, f.spread);
    for (int64_t i = 0; i < of.count; ++i)
      sum_heads(f.spread + of.each[i].at * H, of.each[i].n, f.lanes, inner + i * H, of.each[i].add);
  }

  // The gradients by the scores of n edges, in place of `g`; inner_at(offset, offset in what is
  // periodic).
  template <class Inner>
  HAG_INLINE void by_scores(const Edges &edges, int64_t begin, int64_t n, const Inner &inner_at) {
    const F slope = sloped() ? (F)a.slope : (F)1;
    const bool soft = a.normalise == HAG_NORMALISE_SOFTMAX;
    const bool tanh = a.normalise == HAG_NORMALISE_TANH;
    each(n, [&](int64_t v, int64_t p) {
      const V z = load_as<V>(edges.p + v);
      V by = load_as<V>(edges.g + v);
      if (soft) by = z * (by - load_as<V>(inner_at(v, p)));
      else if (tanh) by = by * ((F)1 - z * z);
      if (slope != (F)1) by = load_as<V>(edges.s + v) > V{} ? by : by * slope;
      store_as(edges.g + v, by);
    });
    keep_run((F *)a.by_score, edges.g, begin, n);
    if (a.d_bias) scatter(a.d_bias, edges.g, n, [&](int64_t b) { return users(begin + b); });
  }

  // Of a part of a row, before and after all parts have given their share of `inner`.
  void part_edges(const Forward &f, int64_t row, int64_t begin, int64_t end, const Edges &edges,
                  F *inner) {
    each_part(row, begin, end, [&](const Segments &of) {
      const Edges own = edges + (of.begin - begin) * H;
      edges_of(f, of, own);
      if (a.normalise == HAG_NORMALISE_SOFTMAX) inner_of(f, of, own, inner);
    });
  }
  void part_by_scores(const Forward &f, int64_t begin, int64_t end, const Edges &edges,
                      const F *inner) {
    if (a.normalise == HAG_NORMALISE_SOFTMAX) repeat(inner, f.repeated);
    by_scores(edges, begin, end - begin, [&](int64_t, int64_t p) { return f.repeated + p; });
  }

  // The gradients by the scores of rows' edges, and what their values count.
  void edges_of_rows(int64_t first, int64_t last) {
    const Forward f = prepare();
    const int64_t longest = a.longest > a.block ? a.longest : a.block;
    const Edges edges = edges_in(take(3 * (longest * H + kSlack)), longest);
    F *inner = run_of(a.block);
    each_group(
        first, last,
        [&](const Segments &of) {
          edges_of(f, of, edges);
          if (a.normalise == HAG_NORMALISE_SOFTMAX) {
            inner_of(f, of, edges, inner);
            spread_rows(of, inner, f.spread, f.repeated);
          }
          by_scores(edges, of.begin, of.n, [&](int64_t v, int64_t) { return f.spread + v; });
        },
        [&](int64_t row, int64_t begin, int64_t end) {
          part_edges(f, row, begin, end, edges, inner);
          part_by_scores(f, begin, end, edges, inner);
        });
  }

  // body(row, begin, end, row - range.first) for the rows of a range, or for a part of one.
  template <class Body>
  HAG_INLINE void each_row(const HagAttendRange &range, const Body &body) const {
    if (range.begin >= 0) return body(range.first, range.begin, range.end, (int64_t)0);
    for (int64_t i = range.first; i < range.last; ++i) {
      const int64_t begin = a.row_ptr[i], end = a.row_ptr[i + 1];
      if (end - begin <= a.longest) body(i, begin, end, i - range.first);
    }
  }

  HAG_INLINE void clear(F *p, int64_t numbers) const {
    if (p)
      for (int64_t k = 0; k < numbers; ++k) p[k] = 0;
  }

  struct ByValue {
    F *s, *p, *g, *other, *spread, *repeated, *row;
    F *d_value;     // of the range's first row
    int64_t first;  // that row
  };

  // Sources' rows where a score is one number of each end: the gradients by values, which may stand
  // where these stood, and all that is of scores, of which only sums over targets are left then.
  void by_value(const HagAttendRange &range, const HagAttendSums &sums) {
    const ByValue room{run_of(a.block),   run_of(a.block), run_of(a.block),
                       run_of(a.block),   run_of(a.block), periodic(),
                       take(H * a.width), (F *)sums.first, range.first};
    const auto run = [&](const Segments &of) { by_value(of, room); };
    if (range.begin >= 0) return each_part(range.first, range.begin, range.end, run);
    each_group(range.first, range.last, run,
               [&](int64_t row, int64_t begin, int64_t end) { each_part(row, begin, end, run); });
  }

  void by_value(const Segments &of, const ByValue &room) {
    const int64_t k = of.begin, n = of.n, numbers = H * a.width;
    F *s = room.s, *p = room.p, *g = room.g, *other = room.other;
    const bool soft = a.normalise == HAG_NORMALISE_SOFTMAX;
    const F slope = (F)a.slope;
    const auto node = [&](int64_t b) { return (int64_t)a.col[k + b]; };
    const auto at = [&](int64_t b) { return place(k + b); };
    const auto user = [&](int64_t b) { return users(k + b); };
    const Segment &one = of.each[0];
    if (!one.last && !one.add)
      __builtin_memcpy(room.row, this->of(a.value, one.row, numbers), numbers * sizeof(F));
    const bool is_part = !one.last || one.add;
    scores(a.key, a.query, of, s, other, room.spread, room.repeated);
    dots(values_, g, [&](const auto &take) {
      for_each(of, [&](const Segment &part) {
        take(rows_of(a.grad, values_, k + part.at, true),
             is_part ? room.row : this->of(a.value, part.row, numbers), part.n);
      });
    });
    each(n, [&](int64_t v, int64_t) { store_as(p + v, leaky(load_as<V>(s + v), slope)); });
    if (soft) gather(other, a.kept, 2 * H, n, node);
    soften(p, n, [&](int64_t v, int64_t) { return other + v; });
    if (soft) {
      gather(other, (const F *)a.kept + H, 2 * H, n, node);
      product(p, other, n, p);
    }
    if (a.d_mask) {
      product(p, g, n, other);
      scatter(a.d_mask, other, n, user);
    }
    const F *share = p;
    if (a.mask) {
      gather(other, a.mask, H, n, user);
      product(g, other, n, g);
      product(p, other, n, room.spread);
      share = room.spread;
    }
    for (int64_t i = 0; room.d_value && i < of.count; ++i) {
      const Segment &part = of.each[i];
      weighted_heads(rows_of(a.grad, values_, k + part.at, false), share + part.at * H, part.n,
                     values_, room.d_value + (part.row - room.first) * numbers, part.add);
    }
    each(n, [&](int64_t v, int64_t) {
      const V z = load_as<V>(p + v), by = load_as<V>(g + v);
      const auto up = load_as<V>(s + v) > V{};
      if (soft) {
        store_as(g + v, z * by);
        store_as(p + v, up ? z : -z);  // which tells the slope
      } else {
        const V inner = a.normalise == HAG_NORMALISE_TANH ? by * ((F)1 - z * z) : by;
        store_as(g + v, up ? inner : inner * slope);
      }
    });
    scatter(a.by_score, g, n, at);
    if (soft) scatter(a.shares, p, n, at);
    else if (a.d_bias) scatter(a.d_bias, g, n, user);
  }

  // The gradients by the scores of targets' rows, of what `by_value` left.
  void less_inner(int64_t first, int64_t last) {
    const Forward f = prepare();
    F *inner = run_of(a.block), *out = run_of(a.block);
    // Copies: what lies past a run, which vectors read, is written by other threads.
    F *by = run_of(a.block), *shares = run_of(a.block);
    const auto copy = [&](F *to, const void *from, const Segments &of) {
      __builtin_memcpy(to, (const F *)from + of.begin * H, of.n * H * sizeof(F));
    };
    const auto run = [&](const Segments &of) {
      const F slope = (F)a.slope;
      copy(by, a.by_score, of), copy(shares, a.shares, of);
      spread_rows(of, inner, f.spread, f.repeated);
      each(of.n, [&](int64_t v, int64_t) {
        const V z = load_as<V>(shares + v), mean = load_as<V>(f.spread + v);
        const auto up = z > V{};
        const V rest = load_as<V>(by + v) - (up ? z : -z) * mean;
        store_as(out + v, up ? rest : rest * slope);
      });
      keep_run((F *)a.by_score, out, of.begin, of.n);
      if (a.d_bias) scatter(a.d_bias, out, of.n, [&](int64_t b) { return users(of.begin + b); });
    };
    const auto sum = [&](const Segments &of) {
      if (copy_inner(of, inner)) return;
      copy(by, a.by_score, of);
      for (int64_t i = 0; i < of.count; ++i)
        sum_heads(by + of.each[i].at * H, of.each[i].n, f.lanes, inner + i * H, of.each[i].add);
    };
    each_group(
        first, last, [&](const Segments &of) { sum(of), run(of); },
        [&](int64_t row, int64_t begin, int64_t end) {
          each_part(row, begin, end, sum);
          each_part(row, begin, end, run);
        });
  }

  struct BySource {
    F *share, *by, *lanes;
    F *key, *own;        // a row of keys, and of gradients by them
    F *d_value, *d_key;  // of the range's first row
    int64_t first;       // that row
  };

  // Sources' rows: gradients by their values and keys, which may be one, and may stand where the
  // values and keys stood.
  void by_source(const HagAttendRange &range, const HagAttendSums &sums) {
    prepare_edges();
    const int64_t keys = key_numbers() + kSlack;
    const BySource room{run_of(a.block), run_of(a.block), periodic(),       take(keys),
                        take(keys),      (F *)sums.first, (F *)sums.second, range.first};
    const auto run = [&](const Segments &of) { by_source(of, room); };
    if (range.begin >= 0) return each_part(range.first, range.begin, range.end, run);
    each_group(range.first, range.last, run,
               [&](int64_t row, int64_t begin, int64_t end) { each_part(row, begin, end, run); });
  }

  void by_source(const Segments &of, const BySource &room) {
    const int64_t numbers = key_numbers();
    const auto at = [&](int64_t b) { return place(of.begin + b); };
    if (room.d_value) gather(room.share, a.shares, H, of.n, at);
    if (room.d_key) gather(room.by, a.by_score, H, of.n, at);
    for (int64_t i = 0; i < of.count; ++i) {
      const Segment &part = of.each[i];
      const int64_t begin = of.begin + part.at, row = part.row - room.first;
      const F *by = room.by + part.at * H;
      F *d_value = room.d_value ? room.d_value + row * H * a.width : nullptr;
      F *d_key = room.d_key ? room.d_key + row * numbers : nullptr;
      if (d_key && a.score == HAG_SCORE_VECTOR) vectors_by_source(part, begin, by, numbers, room);
      if (d_value)
        weighted_heads(rows_of(a.grad, values_, begin, true), room.share + part.at * H, part.n,
                       values_, d_value, part.add);
      if (!d_key) continue;
      if (a.score == HAG_SCORE_SUM) {
        sum_heads(by, part.n, room.lanes, d_key, part.add);
      } else if (a.score == HAG_SCORE_DOT) {
        weighted_heads(rows_of(a.query, keys_, begin, true), by, part.n, keys_, d_key,
                       part.add || d_key == d_value);
      } else if (part.last && d_key == d_value) {
        add_to(d_key, room.own, numbers);
      } else if (part.last) {
        __builtin_memcpy(d_key, room.own, numbers * sizeof(F));
      }
    }
  }

  // The row of its gradients by a key of "vector", in `own`.
  void vectors_by_source(const Segment &part, int64_t begin, const F *by, int64_t numbers,
                         const BySource &room) {
    const F *key = of(a.key, part.row, numbers);
    if (!part.last && !part.add) __builtin_memcpy(room.key, key, numbers * sizeof(F));
    if (!part.last || part.add) key = room.key;  // a gradient may stand in its place by now
    const Vectors<F> z = vectors(key, a.query, begin, part.n, true);
    weighted_heads(SlopeOf<F>{z}, by, part.n, keys_, room.own, part.add);
    if (part.last) multiply(room.own, (const F *)a.weight, numbers);
  }

  void add_to(F *p, const F *from, int64_t numbers) const {
    for (int64_t k = 0; k < numbers; ++k) p[k] += from[k];
  }
  void multiply(F *p, const F *by, int64_t numbers) const {
    for (int64_t k = 0; k < numbers; ++k) p[k] *= by[k];
  }

  struct ByTarget {
    F *column, *lanes, *one;
  };

  // Targets' rows: gradients by their queries and edge queries, by the weight, and by edges, of
  // those by scores.
  void by_target(const HagAttendRange &range, const HagAttendSums &sums) {
    prepare_edges();
    const int64_t keys = key_numbers(), of_edges = H * a.edge_width;
    const ByTarget room{run_of(a.block), periodic(), take(keys + kSlack)};
    each_row(range, [&](int64_t row, int64_t begin, int64_t end, int64_t i) {
      by_target(row, begin, end, room, sums, sums.first ? (F *)sums.first + i * keys : nullptr,
                sums.second ? (F *)sums.second + i * of_edges : nullptr);
    });
  }

  void by_target(int64_t row, int64_t begin, int64_t end, const ByTarget &room,
                 const HagAttendSums &sums, F *d_query, F *d_edge_query) {
    const int64_t key_numbers = this->key_numbers();
    F *column = room.column, *lanes = room.lanes, *one = room.one;
    const F *query = of(a.query, row, key_numbers);
    clear(begin == end ? d_query : nullptr, key_numbers);
    clear(begin == end ? d_edge_query : nullptr, H * a.edge_width);
    for (int64_t k = begin; k < end; k += a.block) {
      const int64_t n = k + a.block < end ? a.block : end - k;
      const F *by = (const F *)a.by_score + k * H;
      const bool add = k > begin;
      if (a.score == HAG_SCORE_SUM) {
        if (d_query) sum_heads(by, n, lanes, d_query, add);
      } else if (a.score == HAG_SCORE_DOT) {
        if (d_query) weighted_heads(rows_of(a.key, keys_, k, true), by, n, keys_, d_query, add);
        if (d_edge_query) sum_edges(by, k, n, d_edge_query, add, column);
        if (a.d_edges) edges_of_dot(row, k, n, by);
      } else if (a.score == HAG_SCORE_VECTOR) {
        const Vectors<F> z = vectors(query, a.key, k, n, true);
        F *d_weight = (F *)sums.d_weight;
        if (d_query && d_weight) weighted_heads(BothOf<F>{z}, by, n, keys_, d_query, add, d_weight);
        else if (d_query) weighted_heads(SlopeOf<F>{z}, by, n, keys_, d_query, add);
        else if (d_weight) weighted_heads(LeakyOf<F>{z}, by, n, keys_, d_weight, true);
        if (a.d_edges || sums.d_projection)
          edges_of_vectors(SlopeOf<F>{z}, k, n, by, one, (F *)sums.d_projection);
      }
    }
    if (d_query && a.score == HAG_SCORE_VECTOR) multiply(d_query, (const F *)a.weight, key_numbers);
  }

  void edges_of_dot(int64_t row, int64_t begin, int64_t n, const F *by) const {
    const int64_t D = a.edge_width;
    const F *query = of(a.edge_query, row, H * D), *grad = of(a.grad_edges, row, H * D);
    const F *share = (const F *)a.shares + begin * H;
    for (int64_t b = 0; b < n; ++b) {
      F *out = (F *)a.d_edges + users(begin + b) * D;
      for (int64_t d = 0; d < D; ++d) out[d] = 0;
      for (int64_t h = 0; h < H; ++h) {
        const F s = by[b * H + h], w = share[b * H + h];
        for (int64_t d = 0; d < D; ++d) out[d] += s * query[h * D + d] + w * grad[h * D + d];
      }
    }
  }

  // `one`: room for what an edge's vector has for a gradient.
  void edges_of_vectors(const SlopeOf<F> &slopes, int64_t begin, int64_t n, const F *by, F *one,
                        F *d_projection) {
    const int64_t K = a.key_width, numbers = H * K, D = a.edge_width;
    const F *weight = (const F *)a.weight;
    for (int64_t b = 0; b < n; ++b) {
      const int64_t user = users(begin + b);
      F *row = a.projection ? one : (F *)a.d_edges + user * numbers;
      for (int64_t h = 0; h < H; ++h) {
        const F s = by[b * H + h];
        for (int64_t k = h * K; k < (h + 1) * K; ++k)
          row[k] = s * weight[k] * slopes.template get<1>(b, k)[0];
      }
      if (!a.projection) continue;
      if (a.d_edges) {
        for (int64_t d = 0; d < D; ++d) {
          const F *to = (const F *)a.projection + d * numbers;
          projected_at_[0] = to;
          F dot[kSlack] = {};
          dots(Pointers<F>{projected_at_}, one, 1, one_key_, dot);
          ((F *)a.d_edges)[user * D + d] = dot[0];
        }
      }
      if (d_projection) {
        const F *edge = (const F *)a.edges + user * D;
        for (int64_t d = 0; d < D; ++d)
          for (int64_t k = 0; k < numbers; ++k) d_projection[d * numbers + k] += edge[d] * one[k];
      }
    }
  }

  // ---------------------------------------------------------------- dot products of all edges

  // <value_j, query_i> of the edges of targets' rows.
  void dot(const HagAttendRange &range, F *out) {
    F *s = run_of(a.block);
    each_row(range, [&](int64_t row, int64_t begin, int64_t end, int64_t) {
      dot(row, begin, end, s, out);
    });
  }
  void dot(int64_t row, int64_t begin, int64_t end, F *s, F *out) {
    const F *query = of(a.query, row, H * a.width);
    for (int64_t k = begin; k < end; k += a.block) {
      const int64_t n = k + a.block < end ? a.block : end - k;
      dots(rows_of(a.value, values_, k, true), query, n, values_, s);
      scatter(out, s, n, [&](int64_t b) { return users(k + b); });
    }
  }

 private:
  const HagAttend &a;
  const int64_t H;
  const HeadsShape<F> values_, keys_, one_edge_, one_key_;
  F *free_;
  int64_t period_;  // vectors
  int64_t short_;   // edges of a row, at most, that is worked on with others
  const F **edge_ = nullptr, **projected_at_ = nullptr;
  F *projected_ = nullptr;
};

}  // namespace

#define HAG_BY_TYPE(call)           \
  if (args->dtype == HAG_FLOAT64) { \
    typedef double F;               \
    call;                           \
  } else {                          \
    typedef float F;                \
    call;                           \
  }

extern "C" {

void HAG_ENTRY(hag_attend_rows_)(const HagAttend *args, int64_t first, int64_t last,
                                 void *scratch) {
  HAG_BY_TYPE(Attend<F>(*args, scratch).rows(first, last))
}

void HAG_ENTRY(hag_attend_scores_)(const HagAttend *args, int64_t row, int64_t begin, int64_t end,
                                   void *scores, void *largest, void *scratch) {
  HAG_BY_TYPE(Attend<F> attend(*args, scratch); auto forward = attend.prepare();
              attend.part_scores(forward, row, begin, end, (F *)scores, (F *)largest))
}

void HAG_ENTRY(hag_attend_part_)(const HagAttend *args, int64_t, int64_t begin, int64_t end,
                                 void *scores, const void *largest, void *total, void *sums,
                                 void *scratch) {
  HAG_BY_TYPE(Attend<F> attend(*args, scratch); auto forward = attend.prepare(); attend.part_sums(
      forward, begin, end, (F *)scores, (const F *)largest, (F *)total, (F *)sums))
}

void HAG_ENTRY(hag_attend_edges_)(const HagAttend *args, int64_t first, int64_t last,
                                  void *scratch) {
  HAG_BY_TYPE(Attend<F>(*args, scratch).edges_of_rows(first, last))
}

void HAG_ENTRY(hag_attend_part_edges_)(const HagAttend *args, int64_t row, int64_t begin,
                                       int64_t end, void *edges, void *inner, void *scratch) {
  HAG_BY_TYPE(Attend<F> attend(*args, scratch); const auto forward = attend.prepare();
              attend.part_edges(forward, row, begin, end, attend.edges_in((F *)edges, end - begin),
                                (F *)inner))
}

void HAG_ENTRY(hag_attend_part_by_scores_)(const HagAttend *args, int64_t begin, int64_t end,
                                           void *edges, const void *inner, void *scratch) {
  HAG_BY_TYPE(Attend<F> attend(*args, scratch); const auto forward = attend.prepare();
              attend.part_by_scores(forward, begin, end, attend.edges_in((F *)edges, end - begin),
                                    (const F *)inner))
}

void HAG_ENTRY(hag_attend_by_value_)(const HagAttend *args, const HagAttendRange *range,
                                     const HagAttendSums *sums, void *scratch) {
  HAG_BY_TYPE(Attend<F>(*args, scratch).by_value(*range, *sums))
}

void HAG_ENTRY(hag_attend_less_inner_)(const HagAttend *args, int64_t first, int64_t last,
                                       void *scratch) {
  HAG_BY_TYPE(Attend<F>(*args, scratch).less_inner(first, last))
}

void HAG_ENTRY(hag_attend_by_source_)(const HagAttend *args, const HagAttendRange *range,
                                      const HagAttendSums *sums, void *scratch) {
  HAG_BY_TYPE(Attend<F>(*args, scratch).by_source(*range, *sums))
}

void HAG_ENTRY(hag_attend_by_target_)(const HagAttend *args, const HagAttendRange *range,
                                      const HagAttendSums *sums, void *scratch) {
  HAG_BY_TYPE(Attend<F>(*args, scratch).by_target(*range, *sums))
}

void HAG_ENTRY(hag_attend_dot_)(const HagAttend *args, const HagAttendRange *range, void *out,
                                void *scratch) {
  HAG_BY_TYPE(Attend<F>(*args, scratch).dot(*range, (F *)out))
}

}  // extern "C"
