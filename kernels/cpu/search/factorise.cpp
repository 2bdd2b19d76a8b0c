#include "search/factorise.h"

#include <algorithm>
#include <cmath>

#include "interrupt.h"
#include "refuse.h"

namespace hag {

namespace {

// The graph whose nodes are the sources, then the targets, and whose edges are the edges of
// non-zero weight, in both directions.
struct DoubleCover {
  std::vector<int64_t> first;  // [nodes + 1], of `edge`
  std::vector<int64_t> edge;
};

void check_ids(const char *name, const Ids &ids, int64_t count) {
  each(ids.size, [&](int64_t e) {
    if (ids[e] < 0 || ids[e] >= count)
      refuse(name, " of edge ", e, " is ", ids[e], "; expected 0 to ", count - 1);
  });
}

DoubleCover double_cover(const Ids &source, const Ids &target, const double *weight,
                         int64_t num_src, int64_t num_nodes) {
  DoubleCover cover;
  cover.first.assign(num_nodes + 1, 0);
  each(source.size, [&](int64_t e) {
    if (weight[e] == 0) return;
    ++cover.first[source[e] + 1];
    ++cover.first[num_src + target[e] + 1];
  });
  for (int64_t v = 0; v < num_nodes; ++v) cover.first[v + 1] += cover.first[v];
  cover.edge.resize(cover.first[num_nodes]);
  std::vector<int64_t> next(cover.first.begin(), cover.first.end() - 1);
  each(source.size, [&](int64_t e) {
    if (weight[e] == 0) return;
    cover.edge[next[source[e]]++] = e;
    cover.edge[next[num_src + target[e]]++] = e;
  });
  return cover;
}

}  // namespace

Factors factorise(const Ids &source, const Ids &target, const double *weight, int64_t num_src,
                  int64_t num_dst) {
  check_ids("the source", source, num_src);
  check_ids("the target", target, num_dst);
  const int64_t num_nodes = num_src + num_dst;
  const DoubleCover cover = double_cover(source, target, weight, num_src, num_nodes);

  Factors out{std::vector<double>(num_src, 1), std::vector<double>(num_dst, 1)};
  // A node that only has edges of weight 0 takes the blame for them.
  each(source.size, [&](int64_t e) {
    if (weight[e] == 0) out.source[source[e]] = out.target[target[e]] = 0;
  });

  std::vector<double> factor(num_nodes);
  std::vector<char> reached(num_nodes, 0);
  std::vector<int64_t> queue;
  Pace pace;
  for (int64_t root = 0; root < num_nodes; ++root) {
    if (reached[root] || cover.first[root] == cover.first[root + 1]) continue;
    factor[root] = 1;
    reached[root] = 1;
    queue.assign(1, root);
    // In powers of two, s spans low..high, and t does with its sign turned. Factors that leave the
    // range of double become 0 or Inf, and the caller sees that they reproduce nothing.
    int64_t low = 0, high = 0;
    for (size_t at = 0; at < queue.size(); ++at) {
      const int64_t v = queue[at];
      pace(1 + cover.first[v + 1] - cover.first[v]);
      for (int64_t k = cover.first[v]; k < cover.first[v + 1]; ++k) {
        const int64_t e = cover.edge[k];
        const int64_t other = v < num_src ? num_src + target[e] : source[e];
        if (reached[other]) continue;
        reached[other] = 1;
        factor[other] = weight[e] / factor[v];
        const int64_t exponent = std::ilogb(factor[other]);
        low = std::min(low, other < num_src ? exponent : -exponent);
        high = std::max(high, other < num_src ? exponent : -exponent);
        queue.push_back(other);
      }
    }
    const int shift = static_cast<int>(-(low + high) / 2);
    for (const int64_t v : queue) {
      if (v < num_src) out.source[v] = std::ldexp(factor[v], shift);
      else out.target[v - num_src] = std::ldexp(factor[v], -shift);
    }
  }
  return out;
}

}  // namespace hag
