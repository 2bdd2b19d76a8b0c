// Putting tiles together, and the plain program.
#include <algorithm>

#include "interrupt.h"
#include "refuse.h"
#include "search/search.h"

namespace hag {

namespace {

void check_distinct(const int32_t *rows, int64_t count, int64_t num_rows) {
  std::vector<char> seen(num_rows, 0);
  each(count, [&](int64_t i) {
    if (rows[i] < 0 || rows[i] >= num_rows)
      refuse("rows[", i, "] is ", rows[i], "; expected 0 to ", num_rows - 1);
    if (seen[rows[i]]) refuse("rows[", i, "] is ", rows[i], ", which stands there twice");
    seen[rows[i]] = 1;
  });
}

}  // namespace

namespace {

void start(ProgramArrays &out) { out.tile_ptr = out.op_ptr = out.hub_ptr = {0}; }

void end_op(ProgramArrays &out, int32_t target) {
  out.op_ptr.push_back(static_cast<int64_t>(out.source.size()));
  out.target.push_back(target);
}

void end_tile(ProgramArrays &out) {
  out.tile_ptr.push_back(static_cast<int64_t>(out.target.size()));
}

// The long rows, as partial sums in tiles of their own.
void add_hubs(const Csr &graph, Mode mode, bool idempotent, const std::vector<int32_t> &hubs,
              ProgramArrays &out) {
  int32_t partial = static_cast<int32_t>(graph.num_dst);
  std::vector<int32_t> row;
  for (const int32_t v : hubs) {
    row.clear();
    append_row(graph, v, mode, idempotent, row);
    const auto length = static_cast<int64_t>(row.size());
    const int64_t parts = std::max<int64_t>(1, (length + kHubPart - 1) / kHubPart);
    for (int64_t p = 0; p < parts; ++p, ++partial) {
      out.source.insert(out.source.end(), row.begin() + length * p / parts,
                        row.begin() + length * (p + 1) / parts);
      end_op(out, partial);
      end_tile(out);
    }
    out.hub_row.push_back(v);
    out.hub_ptr.push_back(partial - graph.num_dst);
  }
}

}  // namespace

ProgramArrays assemble(const Csr &graph, Mode mode, bool idempotent, std::vector<TileProgram> tiles,
                       const std::vector<int32_t> &hubs) {
  ProgramArrays out;
  start(out);
  int64_t num_ops = 0, num_sources = 0;
  for (const TileProgram &tile : tiles) {
    num_ops += static_cast<int64_t>(tile.target.size());
    num_sources += static_cast<int64_t>(tile.source.size());
  }
  out.tile_ptr.reserve(tiles.size() + 1);
  out.op_ptr.reserve(num_ops + 1);
  out.target.reserve(num_ops);
  out.source.reserve(num_sources);
  Pace pace;
  for (TileProgram &tile : tiles) {
    pace(static_cast<int64_t>(tile.target.size() + tile.source.size()));
    for (const int32_t arity : tile.arity) out.op_ptr.push_back(out.op_ptr.back() + arity);
    out.source.insert(out.source.end(), tile.source.begin(), tile.source.end());
    out.target.insert(out.target.end(), tile.target.begin(), tile.target.end());
    end_tile(out);
    tile = TileProgram();  // its memory is not needed twice
  }
  add_hubs(graph, mode, idempotent, hubs, out);
  return out;
}

ProgramArrays plain_program(const Csr &graph, Mode mode, bool idempotent, const int32_t *order,
                            int64_t count) {
  ProgramArrays out;
  start(out);
  std::vector<int32_t> hubs;
  int64_t rows = 0, work = 0;  // of the tile
  Pace pace;
  if (order) check_distinct(order, count, graph.num_dst);
  if (!order || count == graph.num_dst)
    out.source.reserve(graph.num_edges() + (mode == Mode::given ? 0 : graph.num_dst));
  out.op_ptr.reserve(count + 1);
  out.target.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t v = order ? order[i] : i;
    const int64_t length = graph.row_ptr[v + 1] - graph.row_ptr[v];
    if (length > kHubLength) {
      hubs.push_back(static_cast<int32_t>(v));
      continue;
    }
    if (work + length + 1 > kPlainTileWork || rows == kPlainTileRows) {
      if (rows > 0) end_tile(out);
      rows = work = 0;
    }
    pace(1 + length);
    append_row(graph, v, mode, idempotent, out.source);
    end_op(out, static_cast<int32_t>(v));
    ++rows;
    work += length + 1;
  }
  if (rows > 0) end_tile(out);
  add_hubs(graph, mode, idempotent, hubs, out);
  return out;
}

std::pair<int64_t, int64_t> count_reads(const int64_t *tile_ptr, int64_t num_tiles,
                                        const int64_t *op_ptr, const int32_t *source,
                                        int64_t num_src) {
  std::vector<int64_t> last_tile(num_src, -1);
  int64_t scratch = 0, first = 0;
  Pace pace;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const int64_t begin = op_ptr[tile_ptr[tile]], end = op_ptr[tile_ptr[tile + 1]];
    pace(1 + end - begin);
    for (int64_t s = begin; s < end; ++s) {
      if (source[s] < 0) {
        ++scratch;
      } else if (last_tile[source[s]] != tile) {
        last_tile[source[s]] = tile;
        ++first;
      }
    }
  }
  return {scratch, first};
}

}  // namespace hag
