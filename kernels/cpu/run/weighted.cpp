#include "run/weighted.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "interrupt.h"
#include "refuse.h"
#include "run/aggregate.h"
#include "run/instruction_set.h"
#include "run/pieces.h"
#include "threads.h"

namespace hag {
namespace {

struct Kernels {
  decltype(&hag_weighted_rows_baseline) rows;
  decltype(&hag_weighted_part_baseline) part;
  decltype(&hag_edge_dot_baseline) edge_dot;
  decltype(&hag_loop_dot_baseline) loop_dot;
};

#define HAG_KERNELS(ISA) \
  {hag_weighted_rows_##ISA, hag_weighted_part_##ISA, hag_edge_dot_##ISA, hag_loop_dot_##ISA}
const Kernels kKernels[] = {HAG_EVERY_ISA(HAG_KERNELS)};

const Kernels &kernels() { return kKernels[isa_in_use()]; }

}  // namespace

void weighted_sum(const HagWeightedSum &args, int64_t num_rows, int64_t batch,
                  int64_t x_batch_stride, int threads) {
  const int64_t size = element_size(args.dtype), acc_size = accumulator_size(args.dtype);
  if (args.width < 0 || batch < 0 || num_rows < 0 || args.x_row_stride < 0 || x_batch_stride < 0)
    refuse("a size or a stride is negative");
  if (args.width == 0 || num_rows == 0 || batch == 0) return;
  const int64_t num_edges = args.row_ptr[num_rows];
  const int used = useful_threads(threads, batch * args.width * (num_edges + 2 * num_rows));
  const Hubs hubs(args.row_ptr, num_rows);
  const int64_t num_parts = static_cast<int64_t>(hubs.parts.size());
  const int64_t part_bytes = args.width * acc_size;
  const Kernels &k = kernels();  // not inside the parallel region: it may throw
  const std::unique_ptr<char[]> partial(new char[batch * num_parts * part_bytes]);

  const auto matrix = [&](int64_t b) {
    HagWeightedSum one = args;
    one.x = static_cast<const char *>(args.x) + b * x_batch_stride * size;
    one.y = static_cast<char *>(args.y) + b * num_rows * args.width * size;
    one.partial = partial.get() + b * num_parts * part_bytes;
    one.hub_row = hubs.row.data(), one.hub_ptr = hubs.ptr.data();
    one.num_hubs = static_cast<int64_t>(hubs.row.size()), one.num_edges = num_edges;
    return one;
  };
  share(used, batch * num_parts, [&](int64_t item) {
    const HagWeightedSum one = matrix(item / num_parts);
    const Hubs::Part &part = hubs.parts[item % num_parts];
    k.part(&one, part.row, part.begin, part.end, partial.get() + item * part_bytes);
  });
  const int64_t pieces = used == 1 ? 1 : used * kPiecesPerThread;
  const std::vector<int64_t> first = cut_rows(args.row_ptr, num_rows, pieces);
  share(used, batch * pieces, [&](int64_t item) {
    const HagWeightedSum one = matrix(item / pieces);
    k.rows(&one, first[item % pieces], first[item % pieces + 1]);
  });
}

void edge_dot(const HagEdgeDot &args, int64_t num_rows, int64_t num_loops, int threads) {
  const int64_t acc_size = accumulator_size(args.dtype);
  element_size(args.dtype);  // refuses an unknown dtype
  if (args.width < 0 || args.batch < 0 || num_rows < 0 || num_loops < 0)
    refuse("a size is negative");
  const int64_t num_edges = num_rows > 0 ? args.row_ptr[num_rows] : 0;
  const int used = useful_threads(threads, args.batch * args.width * 2 * (num_edges + num_loops));
  const int64_t pieces = used == 1 ? 1 : used * kPiecesPerThread;
  const Kernels &k = kernels();
  char *loops = static_cast<char *>(args.out) + num_edges * acc_size;
  share(used, pieces, [&](int64_t p) {
    const int64_t begin = num_edges * p / pieces, end = num_edges * (p + 1) / pieces;
    if (begin < end) {
      const int64_t *after = std::upper_bound(args.row_ptr, args.row_ptr + num_rows, begin);
      k.edge_dot(&args, after - args.row_ptr - 1, begin, end);
    }
    k.loop_dot(&args, num_loops * p / pieces, num_loops * (p + 1) / pieces, loops);
  });
}

std::vector<int64_t> edge_slots(const Ids &source, const Ids &target, const Csr &graph) {
  const auto differs = [&](int64_t e) {
    refuse("edge_index is of another graph than the HAG: they differ at edge ", e, ", ", source[e],
           " -> ", target[e]);
  };
  if (source.size != graph.num_edges())
    refuse("edge_index has ", source.size, " edges and the HAG ", graph.num_edges(),
           "; expected the same graph");
  std::vector<int64_t> next(graph.num_src + 1, 0), by_source(source.size), slot(source.size);
  each(source.size, [&](int64_t e) {
    if (source[e] < 0 || source[e] >= graph.num_src || target[e] < 0 || target[e] >= graph.num_dst)
      differs(e);
    ++next[source[e] + 1];
  });
  for (int64_t v = 0; v < graph.num_src; ++v) next[v + 1] += next[v];
  each(source.size, [&](int64_t e) { by_source[next[source[e]]++] = e; });
  // In this order each row is met with its sources increasing, as they lie in it.
  next.assign(graph.row_ptr, graph.row_ptr + graph.num_dst);
  each(source.size, [&](int64_t i) {
    const int64_t e = by_source[i];
    const int64_t k = next[target[e]]++;
    if (k >= graph.row_ptr[target[e] + 1] || graph.col[k] != source[e]) differs(e);
    slot[e] = k;
  });
  return slot;
}

}  // namespace hag
