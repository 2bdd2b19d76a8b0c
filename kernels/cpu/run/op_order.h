// The ops of a program in another order, for narrow rows.
#pragma once

#include "run/ops.h"

namespace hag {

// Each tile's ops grouped by their number of sources: intermediate sums first, level by level, then
// rows of y. Rows of one or two cache lines are summed so fast that mispredicted ends of the loop
// over sources take up to half the time; wide rows lose more by writing y out of order.
//
// Every op keeps its sources in their order, so the results are the same bits. Copies of the row
// just written stay behind it. Empty if a tile writes a scratch row twice: its order matters.
OpOrder group_by_arity(const Ops &ops);

}  // namespace hag
