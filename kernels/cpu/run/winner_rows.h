// Max and min with the source that wins, once for every instruction set: isa_*.cpp include this
// file after weighted_rows.h, whose blocks of vectors it uses.
#include "run/winners_abi.h"

namespace {

constexpr int kWinnerVectors = 4;  // values and winners take registers both

template <class Acc>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  typedef int32_t type;
};
template <>
struct IntegerOf<double> {
  typedef int64_t type;
};

// Values and who holds them. A winner is kept as `source ^ flip`: the smaller wins a tie, and with
// flip = -1 that is the larger source.
template <class Acc, int L, int N>
struct Held {
  typedef typename IntegerOf<Acc>::type Id;
  Vec<Acc, L> value[N];
  Vec<Id, L> id[N];

  template <bool LARGEST>
  HAG_INLINE void challenge(int n, Vec<Acc, L> v, Vec<Id, L> i) {
    const Vec<Acc, L> held = value[n];
    const auto nan = v != v, held_nan = held != held;
    const auto better = (LARGEST ? v > held : v < held) | (nan & ~held_nan);
    const auto tied = (v == held) | (nan & held_nan);
    const auto wins = better | (tied & (i < id[n]));
    value[n] = wins ? v : held;
    id[n] = wins ? i : id[n];
  }
};

template <class T, bool LARGEST>
struct WinnerBody {
  typedef typename T::Elem Elem;
  typedef typename T::Acc Acc;
  typedef typename IntegerOf<Acc>::type Id;

  const HagWinners &a;
  int64_t item;  // a tile, or a hub where there is no scratch
  char *scratch;

  template <int L, int N>
  struct Block {
    typedef Vec<Acc, L> V;
    typedef Vec<Id, L> I;
    typedef Held<Acc, L, N> H;

    const HagWinners &a;
    int64_t start, last;
    Acc *scratch_value;
    Id *scratch_id;
    Id flip;

    HAG_INLINE int64_t at(int n) const { return start + lane<N, L>(n, last); }

    template <bool FIRST>
    HAG_INLINE void take_x(int64_t j, H &held) const {
      const Elem *x = (const Elem *)a.x + j * a.width;
      const I id = I{} + (Id)((Id)j ^ flip);
      HAG_UNROLL for (int n = 0; n < N; ++n) {
        const V v = T::template load<L>(x + at(n));
        if constexpr (FIRST) held.value[n] = v, held.id[n] = id;
        else held.template challenge<LARGEST>(n, v, id);
      }
    }

    template <bool FIRST>
    HAG_INLINE void take_stored(const Acc *value, const Id *id, bool whole, H &held) const {
      HAG_UNROLL for (int n = 0; n < N; ++n) {
        const int64_t offset = whole ? at(n) : n * L;
        const V v = load_as<V>(value + offset);
        const I i = load_as<I>(id + offset);
        if constexpr (FIRST) held.value[n] = v, held.id[n] = i;
        else held.template challenge<LARGEST>(n, v, i);
      }
    }

    template <bool FIRST>
    HAG_INLINE void take(int64_t s, H &held) const {
      const int64_t row = ~s * N * L;
      if (s >= 0) take_x<FIRST>(s, held);
      else take_stored<FIRST>(scratch_value + row, scratch_id + row, false, held);
    }

    HAG_INLINE void write_y(int64_t i, H &held, bool empty) const {
      if (a.diagonal) {
        if (empty) take_x<true>(i, held);
        else take_x<false>(i, held);
        empty = false;
      }
      Elem *y = (Elem *)a.y + i * a.width;
      HAG_UNROLL for (int n = 0; n < N; ++n) {
        const Vec<int64_t, L> id = __builtin_convertvector(held.id[n] ^ flip, Vec<int64_t, L>);
        T::template store<L>(y + at(n), empty ? V{} : held.value[n]);
        const Vec<int64_t, L> winner = empty ? Vec<int64_t, L>{} - 1 : id;
        __builtin_memcpy(a.winner + i * a.width + at(n), &winner, sizeof winner);
      }
    }

    HAG_INLINE void write(int64_t t, H &held, bool empty) const {
      if (t >= 0 && t < a.num_dst) return write_y(t, held, empty);
      HAG_UNROLL for (int n = 0; n < N; ++n) {
        const int64_t offset = t < 0 ? ~t * N * L + n * L : (t - a.num_dst) * a.width + at(n);
        store_as((t < 0 ? scratch_value : (Acc *)a.partial) + offset, held.value[n]);
        store_as((t < 0 ? scratch_id : (Id *)a.partial_id) + offset, held.id[n]);
      }
    }

    void tile(int64_t t) const {
      for (int64_t op = a.tile_ptr[t]; op < a.tile_ptr[t + 1]; ++op) {
        const int64_t begin = a.op_ptr[op], end = a.op_ptr[op + 1];
        H held = {};
        if (begin < end) take<true>(a.source[begin], held);
        for (int64_t k = begin + 1; k < end; ++k) take<false>(a.source[k], held);
        write(a.target[op], held, begin == end);
      }
    }

    void hub(int64_t h) const {
      H held;
      const Acc *value = (const Acc *)a.partial;
      const Id *id = (const Id *)a.partial_id;
      int64_t p = a.hub_ptr[h];  // a hub has at least one partial result
      take_stored<true>(value + p * a.width, id + p * a.width, true, held);
      while (++p < a.hub_ptr[h + 1])
        take_stored<false>(value + p * a.width, id + p * a.width, true, held);
      write_y(a.hub_row[h], held, false);
    }
  };

  template <int L, int N>
  HAG_INLINE void run(int64_t start, int64_t last) const {
    const int64_t rows = scratch ? a.tile_scratch[item] : 0;
    const Block<L, N> block = {a,
                               start,
                               last,
                               (Acc *)scratch,
                               (Id *)(scratch + rows * N * L * sizeof(Acc)),
                               (Id)(a.last ? -1 : 0)};
    if (scratch) block.tile(item);
    else block.hub(item);
  }
};

template <class T>
void winners_of(const HagWinners &a, int64_t item, char *scratch) {
  typedef typename T::Acc Acc;
  if (a.largest) over_blocks<Acc, kWinnerVectors>(a.width, WinnerBody<T, true>{a, item, scratch});
  else over_blocks<Acc, kWinnerVectors>(a.width, WinnerBody<T, false>{a, item, scratch});
}

void winners_by_dtype(const HagWinners &a, int64_t item, char *scratch) {
  switch (a.dtype) {
    case HAG_FLOAT32:
      return winners_of<Float32>(a, item, scratch);
    case HAG_FLOAT64:
      return winners_of<Float64>(a, item, scratch);
    case HAG_FLOAT16:
      return winners_of<Float16>(a, item, scratch);
    case HAG_BFLOAT16:
      return winners_of<BFloat16>(a, item, scratch);
  }
}

}  // namespace

extern "C" {

// Of a tile with so many scratch rows.
int64_t HAG_ENTRY(hag_winner_bytes_)(int64_t rows) {
  return rows * kWinnerVectors * kVectorBytes * 2;
}

void HAG_ENTRY(hag_winner_tile_)(const HagWinners *args, int64_t tile, void *scratch) {
  winners_by_dtype(*args, tile, (char *)scratch);
}

void HAG_ENTRY(hag_winner_hub_)(const HagWinners *args, int64_t hub) {
  winners_by_dtype(*args, hub, nullptr);
}

}  // extern "C"
