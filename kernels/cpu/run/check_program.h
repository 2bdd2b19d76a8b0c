// Whether a program is the program of a graph.
#pragma once

#include "graph.h"
#include "run/aggregate.h"

namespace hag {

// Throws std::invalid_argument at the first row and source where a program, whose indices are
// checked, and the matrix of a graph differ. Exact: every row is expanded, and compared with the
// graph's as a multiset. Takes O(edges + ops), whatever the program, and no more memory than these.
// Partial sums must be of rows of x, as those of long rows are.
void check_program(const Program &program, const Csr &graph, Mode mode, bool idempotent,
                   int threads);

}  // namespace hag
