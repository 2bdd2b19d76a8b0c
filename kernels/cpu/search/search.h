// From a graph to a program: tiles of rows, the search in each, the arrays.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "graph.h"
#include "program_arrays.h"
#include "search/tile_search.h"

namespace hag {

// The most that a tile of the plain program takes, unless it is a single row.
constexpr int64_t kPlainTileRows = 256;
constexpr int64_t kPlainTileWork = 8192;  // sources and rows

// Tiles take `count` rows in the order of `rows`, or, where that is null, the first ones.
// Throws std::invalid_argument if a row is none of the graph's, or stands there twice.
ProgramArrays plain_program(const Csr &graph, Mode mode, bool idempotent, const int32_t *rows,
                            int64_t count);

// What a search comes to.
struct Found {
  std::optional<ProgramArrays> program;  // none where the plain program is as good
  std::vector<int32_t> order;  // all rows, as the tiles take them; empty: in increasing order
};

// Method "auto". `leave_one_out`: targets are the first sources. Rows that do not profit are plain.
// A search of which some tiles say that it cannot pay is given up.
Found search_program(const Csr &graph, Mode mode, bool idempotent, bool leave_one_out,
                     const Costs &costs, int threads);

// Method "greedy": the paper's Algorithm 3 with at most `capacity` intermediates, one tile a
// connected component.
ProgramArrays greedy_program(const Csr &graph, Mode mode, bool idempotent, int64_t capacity,
                             int threads);

ProgramArrays assemble(const Csr &graph, Mode mode, bool idempotent, std::vector<TileProgram> tiles,
                       const std::vector<int32_t> &hubs);

// Reads of a valid program: of scratch, and of rows of x that their tile has not read before.
std::pair<int64_t, int64_t> count_reads(const int64_t *tile_ptr, int64_t num_tiles,
                                        const int64_t *op_ptr, const int32_t *source,
                                        int64_t num_src);

}  // namespace hag
