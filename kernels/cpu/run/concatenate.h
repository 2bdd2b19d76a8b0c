// Joining the programs of graphs that stand side by side, as a loader batches them.
#pragma once

#include <vector>

#include "graph.h"
#include "program_arrays.h"
#include "run/aggregate.h"

namespace hag {

// Neighbouring tiles are joined up to this many ops.
constexpr int64_t kJoinedOps = 64;

// One of the graphs: its program, or null where its rows are summed as they stand, which costs no
// more than its edges. None of these may be longer than `kHubLength`.
struct Part {
  const Program *program;
  Csr graph;  // where there is no program
};

// The program of all, whose arrays need no check, and the scratch rows of each of its tiles.
struct Joint {
  ProgramArrays arrays;
  std::vector<int32_t> tile_scratch;
};

// The programs must have one diagonal, and the graphs be square where `mode` adds loops. O(ops).
Joint concatenate(const std::vector<Part> &parts, Mode mode, bool idempotent);
ProgramArrays concatenate(const std::vector<const Program *> &programs);

}  // namespace hag
