#include "graph.h"

#include <algorithm>

#include "interrupt.h"
#include "refuse.h"
#include "threads.h"

namespace hag {

namespace {

constexpr int64_t kShortRow = 64;

std::string range(int64_t end) { return "0 <= id < " + std::to_string(end); }

void check_id(int64_t id, int64_t end, int row, int64_t edge) {
  if (id < 0 || id >= end)
    refuse("edge_index[", row, ", ", edge, "] is ", id, "; expected ", range(end),
           (row ? " (targets)" : " (sources)"));
}

}  // namespace

Mode parse_mode(const std::string &self_loops) {
  if (self_loops.empty()) return Mode::given;
  if (self_loops == "add") return Mode::add;
  if (self_loops == "fill") return Mode::fill;
  refuse("self_loops is '", self_loops, "'; expected '', 'add' or 'fill'");
}

void load_row(const Csr &graph, int64_t row, Mode mode, bool idempotent, Row &out) {
  out.simple.clear();
  out.extra.clear();
  const int32_t self = static_cast<int32_t>(row);
  // Where targets go on behind the sources (a reversed bipartite graph), those have no loop.
  bool looped = mode == Mode::given || row >= graph.num_src;
  auto take = [&](int32_t source) {
    if (out.simple.empty() || out.simple.back() != source) out.simple.push_back(source);
    else if (!idempotent) out.extra.push_back(source);
  };
  for (int64_t e = graph.row_ptr[row]; e < graph.row_ptr[row + 1]; ++e) {
    const int32_t source = graph.col[e];
    if (!looped && source >= self) {
      take(self);
      looped = true;
    }
    if (mode == Mode::fill && source == self) continue;
    take(source);
  }
  if (!looped) take(self);
}

void append_row(const Csr &graph, int64_t row, Mode mode, bool idempotent,
                std::vector<int32_t> &out) {
  const int32_t *begin = graph.col + graph.row_ptr[row], *end = graph.col + graph.row_ptr[row + 1];
  const auto start = static_cast<int64_t>(out.size());
  if (mode == Mode::given || row >= graph.num_src) {
    out.insert(out.end(), begin, end);
  } else {
    const int32_t self = static_cast<int32_t>(row);
    const int32_t *at = std::lower_bound(begin, end, self);
    out.insert(out.end(), begin, at);
    out.push_back(self);
    if (mode == Mode::fill)
      while (at < end && *at == self) ++at;
    out.insert(out.end(), at, end);
  }
  if (idempotent) out.erase(std::unique(out.begin() + start, out.end()), out.end());
}

namespace {

constexpr int64_t kEdgesPerThread = 1 << 17;

// Of `requested` threads, those for which it pays to count apart: each counts all keys.
int grouping_threads(int requested, int64_t num_edges, int64_t num_keys) {
  const int64_t of_edges = num_edges / kEdgesPerThread;
  const int64_t of_keys = 2 * num_edges / std::max<int64_t>(num_keys, 1);
  const int64_t most = std::min<int64_t>({requested, of_edges, of_keys, 64});
  return usable_threads(static_cast<int>(std::max<int64_t>(most, 1)));
}

// Runs body(first, last) over pieces of 0..count-1, polling in between.
template <class Body>
void in_pieces(int64_t first, int64_t last, const Body &body) {
  while (first < last) {
    const int64_t end = std::min(first + kStepsPerPoll, last);
    body(first, end);
    first = end;
    if (first < last) poll();
  }
}

// Another thread may write to what is read here: it must not lead out of any array.
void check_all_taken(int64_t taken, int64_t num_edges) {
  if (taken != num_edges) refuse("edge_index was written to while it was read");
}

// Groups values by their keys, each group in the order in which they come: a counting sort.
// `walk(first, last, take)` calls take(key, value) for the edges in a stretch of 0..walked-1.
template <class At, class Walk>
CsrArrays grouped(int64_t num_edges, int64_t walked, int64_t num_keys, int threads,
                  const Walk &walk) {
  CsrArrays out;
  out.row_ptr.assign(num_keys + 1, 0);
  out.col.resize(num_edges);
  int64_t *ptr = out.row_ptr.data();
  int32_t *col = out.col.data();
  threads = grouping_threads(threads, num_edges, num_keys);
  std::vector<std::vector<At>> next(threads);  // of each thread: where its next of a key goes
  const auto share = [&](int thread, const auto &take) {
    in_pieces(walked * thread / threads, walked * (thread + 1) / threads,
              [&](int64_t first, int64_t last) { walk(first, last, take); });
  };
  in_parallel_until_stopped(threads, [&](int thread) {
    next[thread].assign(num_keys, 0);
    At *count = next[thread].data();
    share(thread, [count](int64_t key, int64_t) { ++count[key]; });
  });
  At begin = 0;
  each(num_keys, [&](int64_t k) {
    for (std::vector<At> &of_thread : next) {
      const At count = of_thread[k];
      of_thread[k] = begin;
      begin += count;
    }
    ptr[k + 1] = begin;
  });
  check_all_taken(static_cast<int64_t>(begin), num_edges);
  in_parallel_until_stopped(threads, [&](int thread) {
    At *at = next[thread].data();
    const At end = static_cast<At>(num_edges);
    share(thread, [at, col, end](int64_t key, int64_t value) {
      const At place = at[key]++;
      if (place < end) col[place] = static_cast<int32_t>(value);
    });
  });
  return out;
}

template <class Walk>
CsrArrays group(int64_t num_edges, int64_t walked, int64_t num_keys, int threads,
                const Walk &walk) {
  if (num_edges <= UINT32_MAX) return grouped<uint32_t>(num_edges, walked, num_keys, threads, walk);
  return grouped<uint64_t>(num_edges, walked, num_keys, threads, walk);
}
template <class Walk>
CsrArrays group(int64_t num_edges, int64_t num_keys, int threads, const Walk &walk) {
  return group(num_edges, num_edges, num_keys, threads, walk);
}

// The same where keys never decrease: they say where groups start, and values are as they come.
template <class Walk>
CsrArrays adopt(int64_t num_edges, int64_t num_keys, const Walk &walk) {
  CsrArrays out;
  out.row_ptr.resize(num_keys + 1);
  out.col.resize(num_edges);
  int64_t at = 0, row = -1;
  in_pieces(0, num_edges, [&](int64_t first, int64_t last) {
    walk(first, last, [&](int64_t key, int64_t value) {
      while (row < key) out.row_ptr[++row] = at;
      out.col[at++] = static_cast<int32_t>(value);
    });
  });
  while (row < num_keys) out.row_ptr[++row] = at;
  check_all_taken(at, num_edges);
  return out;
}

Csr view(const CsrArrays &arrays, int64_t num_src) {
  const int64_t num_dst = static_cast<int64_t>(arrays.row_ptr.size()) - 1;
  return {arrays.row_ptr.data(), arrays.col.data(), num_dst, num_src};
}

CsrArrays transposed(const Csr &graph, int threads) {
  return group(graph.num_edges(), graph.num_src, threads,
               [&](int64_t first, int64_t last, const auto &take) {
                 const int64_t *end = graph.row_ptr + graph.num_dst + 1;
                 int64_t v = std::upper_bound(graph.row_ptr, end, first) - graph.row_ptr - 1;
                 for (int64_t e = first; e < last; ++v) {
                   const int64_t stop = std::min(last, graph.row_ptr[v + 1]);
                   for (; e < stop; ++e) take(graph.col[e], v);
                 }
               });
}

// How edges lie.
struct Order {
  bool in_range = true;
  bool by_source = true, by_target = true;  // ids never decrease
  bool by_both = true;  // in the order that it is in, the other ids do not decrease, either
  int64_t loops = 0;
};

template <class Id>
struct Edges {
  const Id *source, *target;
  int64_t source_stride, target_stride, num_src, num_dst;

  // Those that are in range: each edge is read more than once.
  template <class Take>
  void by_source(int64_t first, int64_t last, const Take &take) const {
    for (int64_t e = first; e < last; ++e) {
      const int64_t s = source[e * source_stride], t = target[e * target_stride];
      if (static_cast<uint64_t>(s) < static_cast<uint64_t>(num_src) &&
          static_cast<uint64_t>(t) < static_cast<uint64_t>(num_dst))
        take(s, t);
    }
  }
  template <class Take>
  void by_target(int64_t first, int64_t last, const Take &take) const {
    by_source(first, last, [&](int64_t s, int64_t t) { take(t, s); });
  }

  Order look(int64_t num_edges) const {
    bool in_range = true, by_source = true, by_target = true, ties_s = true, ties_t = true;
    int64_t s0 = 0, t0 = 0, loops = 0;
    in_pieces(0, num_edges, [&](int64_t first, int64_t last) {
      for (int64_t e = first; e < last; ++e) {
        const int64_t s = source[e * source_stride], t = target[e * target_stride];
        in_range &= static_cast<uint64_t>(s) < static_cast<uint64_t>(num_src);
        in_range &= static_cast<uint64_t>(t) < static_cast<uint64_t>(num_dst);
        by_source &= s0 <= s, by_target &= t0 <= t;
        ties_t &= t != t0 || s0 <= s, ties_s &= s != s0 || t0 <= t;
        loops += s == t;
        s0 = s, t0 = t;
      }
    });
    return {in_range, by_source, by_target, by_target ? ties_t : ties_s, loops};
  }

  Directions directions(int64_t num_edges, bool both, int threads, const Order &order) const {
    const auto source_first = [this](int64_t first, int64_t last, const auto &take) {
      this->by_source(first, last, take);
    };
    const auto target_first = [this](int64_t first, int64_t last, const auto &take) {
      this->by_target(first, last, take);
    };
    Directions out;
    if (order.by_target && order.by_both) {
      out.forward = adopt(num_edges, num_dst, target_first);
      if (both) out.reverse = group(num_edges, num_src, threads, source_first);
    } else if (order.by_source) {
      out.forward = group(num_edges, num_dst, threads, target_first);
      if (both && order.by_both) out.reverse = adopt(num_edges, num_src, source_first);
      else if (both) out.reverse = transposed(view(out.forward, num_src), threads);
    } else {  // sources increase inside a row once rows are filled in the order of sources
      out.reverse = group(num_edges, num_src, threads, source_first);
      out.forward = transposed(view(out.reverse, num_dst), threads);
      if (!both) out.reverse = {};
      else if (!order.by_target) out.reverse = transposed(view(out.forward, num_src), threads);
    }
    return out;
  }

  // The same with one loop on each of the first `loops` nodes in place of those there are.
  Directions with_loops(int64_t num_edges, bool both, int threads, int64_t loops,
                        const Order &order) const {
    const auto walk = [&](int64_t first, int64_t last, const auto &take) {
      by_source(first, std::min(last, num_edges), [&](int64_t s, int64_t t) {
        if (s != t) take(s, t);
      });
      for (int64_t e = std::max(first, num_edges); e < last; ++e)
        take(e - num_edges, e - num_edges);
    };
    Directions out;
    out.reverse = group(num_edges - order.loops + loops, num_edges + loops, num_src, threads, walk);
    out.forward = transposed(view(out.reverse, num_dst), threads);
    out.reverse = both ? transposed(view(out.forward, num_src), threads) : CsrArrays{};
    return out;
  }
};

template <class Id>
Directions directions_of(const Ids &source, const Ids &target, int64_t num_src, int64_t num_dst,
                         bool both, int threads, int64_t loops) {
  const Edges<Id> edges{static_cast<const Id *>(source.data),
                        static_cast<const Id *>(target.data),
                        source.stride,
                        target.stride,
                        num_src,
                        num_dst};
  const Order order = edges.look(source.size);
  if (!order.in_range)
    each(source.size, [&](int64_t e) {
      check_id(source[e], num_src, 0, e);
      check_id(target[e], num_dst, 1, e);
    });
  if (loops > 0) return edges.with_loops(source.size, both, threads, loops, order);
  return edges.directions(source.size, both, threads, order);
}

}  // namespace

Directions build_directions(const Ids &source, const Ids &target, int64_t num_src, int64_t num_dst,
                            bool both, int threads, int64_t loops) {
  if (source.wide != target.wide) refuse("sources and targets are of two dtypes; expected one");
  const auto build = source.wide ? directions_of<int64_t> : directions_of<int32_t>;
  return build(source, target, num_src, num_dst, both, threads, loops);
}

CsrArrays transpose_csr(const Csr &graph, int threads) { return transposed(graph, threads); }

std::vector<int32_t> reversed_order(const Csr &graph, int threads) {
  return group(graph.num_edges(), graph.num_src, threads,
               [&](int64_t first, int64_t last, const auto &take) {
                 for (int64_t e = first; e < last; ++e) take(graph.col[e], e);
               })
      .col;
}

namespace {

class Hash {
 public:
  void add(int64_t source, int64_t target) {
    const uint64_t mixed =
        mix((static_cast<uint64_t>(source) << 32) ^ static_cast<uint64_t>(target & 0xFFFFFFFFll));
    low_ += mixed;
    high_ += mix(mixed ^ 0xD6E8FEB86659FD93ull);
  }
  std::pair<uint64_t, uint64_t> sum() const { return {low_, high_}; }

 private:
  uint64_t low_ = 0, high_ = 0;
};

}  // namespace

std::pair<uint64_t, uint64_t> edge_hash(const Ids &source, const Ids &target) {
  Hash hash;
  each(source.size, [&](int64_t e) { hash.add(source[e], target[e]); });
  return hash.sum();
}

std::pair<uint64_t, uint64_t> csr_hash(const Csr &graph) {
  Hash hash;
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    pace(1 + graph.row_ptr[v + 1] - graph.row_ptr[v]);
    for (int64_t e = graph.row_ptr[v]; e < graph.row_ptr[v + 1]; ++e) hash.add(graph.col[e], v);
  }
  return hash.sum();
}

namespace {

template <class Id>
bool are_edges(const Id *source, int64_t source_stride, const Id *target, int64_t target_stride,
               const Csr &graph) {
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    const int64_t begin = graph.row_ptr[v], end = graph.row_ptr[v + 1];
    pace(1 + end - begin);
    int64_t other = 0;
    for (int64_t e = begin; e < end; ++e)
      other |= (source[e * source_stride] ^ graph.col[e]) | (target[e * target_stride] ^ v);
    if (other) return false;
  }
  return true;
}

}  // namespace

bool is_in_order(const Ids &source, const Ids &target, const Csr &graph) {
  if (source.size != graph.num_edges() || source.wide != target.wide) return false;
  const auto compare = [&](auto id) {
    using Id = decltype(id);
    return are_edges(static_cast<const Id *>(source.data), source.stride,
                     static_cast<const Id *>(target.data), target.stride, graph);
  };
  return source.wide ? compare(int64_t{}) : compare(int32_t{});
}

void write_edges(const Csr &graph, int64_t *source, int64_t *target) {
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    const int64_t begin = graph.row_ptr[v], end = graph.row_ptr[v + 1];
    pace(1 + end - begin);
    std::copy(graph.col + begin, graph.col + end, source + begin);
    std::fill(target + begin, target + end, v);
  }
}

template <class Id>
void add_to_stretches(Id *data, int64_t rows, const int64_t *ends, const int64_t *added,
                      int64_t count) {
  Pace pace;
  for (int64_t row = 0; row < rows; ++row, data += ends[count]) {
    for (int64_t i = 0; i < count; ++i) {
      pace(1 + ends[i + 1] - ends[i]);
      const Id more = static_cast<Id>(added[i]);
      for (int64_t k = ends[i]; k < ends[i + 1]; ++k) data[k] += more;
    }
  }
}
template void add_to_stretches(int64_t *, int64_t, const int64_t *, const int64_t *, int64_t);
template void add_to_stretches(int32_t *, int64_t, const int64_t *, const int64_t *, int64_t);

bool is_symmetric(const Csr &graph) {
  if (graph.num_src != graph.num_dst) return false;
  // Targets are visited in increasing order, so row `source` must name them in that order.
  std::vector<int64_t> next(graph.row_ptr, graph.row_ptr + graph.num_dst);
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    pace(1 + graph.row_ptr[v + 1] - graph.row_ptr[v]);
    for (int64_t e = graph.row_ptr[v]; e < graph.row_ptr[v + 1]; ++e) {
      const int32_t source = graph.col[e];
      int64_t &at = next[source];
      if (at == graph.row_ptr[source + 1] || graph.col[at] != v) return false;
      ++at;
    }
  }
  return true;
}

bool has_duplicates(const Csr &graph) {
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    pace(1 + graph.row_ptr[v + 1] - graph.row_ptr[v]);
    for (int64_t e = graph.row_ptr[v] + 1; e < graph.row_ptr[v + 1]; ++e)
      if (graph.col[e] == graph.col[e - 1]) return true;
  }
  return false;
}

std::vector<int64_t> count_self_loops(const Csr &graph) {
  std::vector<int64_t> count;
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    pace(16);
    const int32_t *begin = graph.col + graph.row_ptr[v], *end = graph.col + graph.row_ptr[v + 1];
    const int32_t self = static_cast<int32_t>(v);
    int64_t loops = 0;
    if (end - begin <= kShortRow) {  // sooner than a search, which guesses wrong at each step
      for (const int32_t *at = begin; at < end; ++at) loops += *at == self;
    } else {
      const auto found = std::equal_range(begin, end, self);
      loops = found.second - found.first;
    }
    if (loops == 0) continue;
    if (count.empty()) count.assign(graph.num_dst, 0);
    count[v] = loops;
  }
  return count;
}

void check_csr(const Csr &graph, int64_t num_edges) {
  if (graph.row_ptr[0] != 0 || graph.row_ptr[graph.num_dst] != num_edges)
    refuse("row_ptr runs from ", graph.row_ptr[0], " to ", graph.row_ptr[graph.num_dst],
           "; expected 0 to ", num_edges, " (the length of col)");
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    const int64_t begin = graph.row_ptr[v], end = graph.row_ptr[v + 1];
    if (begin > end || end > num_edges)
      refuse("row_ptr[", v + 1, "] is ", end, "; expected ", begin, " to ", num_edges);
    pace(1 + end - begin);
    for (int64_t e = begin; e < end; ++e) {
      if (graph.col[e] < 0 || graph.col[e] >= graph.num_src)
        refuse("col[", e, "] is ", graph.col[e], "; expected ", range(graph.num_src));
      if (e > begin && graph.col[e] < graph.col[e - 1])
        refuse("col is not increasing inside row ", v);
    }
  }
}

}  // namespace hag
