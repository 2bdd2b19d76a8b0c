// Rank-one edge weights: w_e = s[source_e] * t[target_e].
#pragma once

#include <vector>

#include "graph.h"

namespace hag {

struct Factors {
  std::vector<double> source, target;
};

// The factors that reproduce the weights along a spanning forest, and so every weight where there
// are such factors: the caller compares. O(nodes + edges). Weights must be finite. Throws
// std::invalid_argument naming the first id that is out of range.
Factors factorise(const Ids &source, const Ids &target, const double *weight, int64_t num_src,
                  int64_t num_dst);

}  // namespace hag
