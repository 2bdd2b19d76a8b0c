// Joining the programs of graphs that stand side by side, as a loader batches them.
#pragma once

#include <vector>

#include "program_arrays.h"
#include "run/aggregate.h"

namespace hag {

// Neighbouring tiles are joined up to this many ops.
constexpr int64_t kJoinedOps = 64;

// The programs must have one diagonal. O(ops).
ProgramArrays concatenate(const std::vector<const Program *> &programs);

}  // namespace hag
