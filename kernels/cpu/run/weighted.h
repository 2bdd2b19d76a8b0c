// Weighted sums over a CSR graph and the gradients of their weights, on the CPU: the order of the
// weights, threads and long rows. The arithmetic is in weighted_rows.h.
#pragma once

#include <vector>

#include "graph.h"
#include "run/weighted_abi.h"

namespace hag {

// y for every matrix of a batch: y is contiguous [batch, num_rows, width]. The hub fields of `args`
// are filled here. The graph must be valid: a HAG's is.
void weighted_sum(const HagWeightedSum &args, int64_t num_rows, int64_t batch,
                  int64_t x_batch_stride, int threads);

// out: one number an edge, then one a loop of the first `num_loops` rows.
void edge_dot(const HagEdgeDot &args, int64_t num_rows, int64_t num_loops, int threads);

// The slot of each edge in the graph's CSR; duplicates keep their order. Throws
// std::invalid_argument at an edge where the graph differs. O(nodes + edges).
std::vector<int64_t> edge_slots(const Ids &source, const Ids &target, const Csr &graph);

}  // namespace hag
