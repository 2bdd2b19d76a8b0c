#include "graph.h"

#include <algorithm>

#include "interrupt.h"
#include "refuse.h"

namespace hag {

namespace {

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

CsrArrays build_csr(const Ids &source, const Ids &target, int64_t num_src, int64_t num_dst) {
  const int64_t num_edges = source.size;
  CsrArrays out;
  out.row_ptr.assign(num_dst + 1, 0);
  int64_t *ptr = out.row_ptr.data();
  each(num_edges, [&](int64_t e) {
    check_id(source[e], num_src, 0, e);
    const int64_t t = target[e];
    check_id(t, num_dst, 1, e);
    ++ptr[t + 1];
  });
  for (int64_t v = 0; v < num_dst; ++v) ptr[v + 1] += ptr[v];
  out.col.resize(num_edges);
  // Each ptr[v] runs to the end of its row while the row fills; shifting restores the starts.
  each(num_edges, [&](int64_t e) { out.col[ptr[target[e]]++] = static_cast<int32_t>(source[e]); });
  for (int64_t v = num_dst; v > 0; --v) ptr[v] = ptr[v - 1];
  ptr[0] = 0;
  Pace pace;
  for (int64_t v = 0; v < num_dst; ++v) {
    int32_t *begin = out.col.data() + ptr[v], *end = out.col.data() + ptr[v + 1];
    pace(1 + end - begin);
    if (!std::is_sorted(begin, end)) sort(begin, end);
  }
  return out;
}

CsrArrays transpose_csr(const Csr &graph) {
  CsrArrays out;
  out.row_ptr.assign(graph.num_src + 1, 0);
  int64_t *ptr = out.row_ptr.data();
  each(graph.num_edges(), [&](int64_t e) { ++ptr[graph.col[e] + 1]; });
  for (int64_t v = 0; v < graph.num_src; ++v) ptr[v + 1] += ptr[v];
  out.col.resize(graph.num_edges());
  Pace pace;
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    for (int64_t e = graph.row_ptr[v]; e < graph.row_ptr[v + 1]; ++e)
      out.col[ptr[graph.col[e]]++] = static_cast<int32_t>(v);
    pace(1 + graph.row_ptr[v + 1] - graph.row_ptr[v]);
  }
  for (int64_t v = graph.num_src; v > 0; --v) ptr[v] = ptr[v - 1];
  ptr[0] = 0;
  return out;
}

std::pair<uint64_t, uint64_t> edge_hash(const Ids &source, const Ids &target) {
  uint64_t low = 0, high = 0;
  each(source.size, [&](int64_t e) {
    const uint64_t edge =
        (static_cast<uint64_t>(source[e]) << 32) ^ static_cast<uint64_t>(target[e] & 0xFFFFFFFFll);
    const uint64_t mixed = mix(edge);
    low += mixed;
    high += mix(mixed ^ 0xD6E8FEB86659FD93ull);
  });
  return {low, high};
}

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
    const auto loops = std::equal_range(begin, end, static_cast<int32_t>(v));
    if (loops.first == loops.second) continue;
    if (count.empty()) count.assign(graph.num_dst, 0);
    count[v] = loops.second - loops.first;
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
    pace(1 + end - begin);
    if (begin > end || end > num_edges)
      refuse("row_ptr[", v + 1, "] is ", end, "; expected ", begin, " to ", num_edges);
    for (int64_t e = begin; e < end; ++e) {
      if (graph.col[e] < 0 || graph.col[e] >= graph.num_src)
        refuse("col[", e, "] is ", graph.col[e], "; expected ", range(graph.num_src));
      if (e > begin && graph.col[e] < graph.col[e - 1])
        refuse("col is not increasing inside row ", v);
    }
  }
}

}  // namespace hag
