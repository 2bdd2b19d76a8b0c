// Putting tiles together, the plain program, and expanding a program to check it.
#include <algorithm>

#include "interrupt.h"
#include "refuse.h"
#include "search/search.h"

namespace hag {

namespace {

constexpr int64_t kPlainTileRows = 256;
constexpr int64_t kPlainTileWork = 8192;  // sources and rows

void check_permutation(const int32_t *rows, int64_t num_rows) {
  std::vector<char> seen(num_rows, 0);
  each(num_rows, [&](int64_t i) {
    if (rows[i] < 0 || rows[i] >= num_rows)
      refuse("rows[", i, "] is ", rows[i], "; expected 0 to ", num_rows - 1);
    if (seen[rows[i]]) refuse("rows[", i, "] is ", rows[i], ", which stands there twice");
    seen[rows[i]] = 1;
  });
}

}  // namespace

ProgramArrays assemble(const Csr &graph, Mode mode, bool idempotent, std::vector<TileProgram> tiles,
                       const std::vector<int32_t> &hubs) {
  ProgramArrays out;
  out.hub_ptr.push_back(0);
  int32_t partial = static_cast<int32_t>(graph.num_dst);
  for (const int32_t row : hubs) {
    TileProgram whole = plain_tile(graph, mode, idempotent, &row, 1);
    const int64_t length = static_cast<int64_t>(whole.source.size());
    const int64_t parts = std::max<int64_t>(1, (length + kHubPart - 1) / kHubPart);
    for (int64_t p = 0; p < parts; ++p, ++partial) {
      TileProgram part;
      part.add({whole.source.begin() + length * p / parts,
                whole.source.begin() + length * (p + 1) / parts},
               partial);
      tiles.push_back(std::move(part));
    }
    out.hub_row.push_back(row);
    out.hub_ptr.push_back(partial - graph.num_dst);
  }
  int64_t num_ops = 0, num_sources = 0;
  for (const TileProgram &tile : tiles) {
    num_ops += static_cast<int64_t>(tile.target.size());
    num_sources += static_cast<int64_t>(tile.source.size());
  }
  out.tile_ptr.reserve(tiles.size() + 1);
  out.tile_ptr.push_back(0);
  out.op_ptr.reserve(num_ops + 1);
  out.op_ptr.push_back(0);
  out.target.reserve(num_ops);
  out.source.reserve(num_sources);
  Pace pace;
  for (TileProgram &tile : tiles) {
    pace(static_cast<int64_t>(tile.target.size() + tile.source.size()));
    for (const int32_t arity : tile.arity) out.op_ptr.push_back(out.op_ptr.back() + arity);
    out.source.insert(out.source.end(), tile.source.begin(), tile.source.end());
    out.target.insert(out.target.end(), tile.target.begin(), tile.target.end());
    out.tile_ptr.push_back(static_cast<int64_t>(out.target.size()));
    tile = TileProgram();  // its memory is not needed twice
  }
  return out;
}

namespace {

// The sources of a row in increasing order, as `load_row` has them, written from `out` on. Returns
// where they end.
int32_t *write_row(const Csr &graph, int64_t row, Mode mode, bool idempotent, int32_t *out) {
  const int32_t *at = graph.col + graph.row_ptr[row], *end = graph.col + graph.row_ptr[row + 1];
  const bool looped = mode != Mode::given && row < graph.num_src;
  if (!looped && !idempotent) return std::copy(at, end, out);
  const int32_t self = static_cast<int32_t>(row);
  const int32_t *const begin = out;
  const auto take = [&](int32_t source) {
    if (!idempotent || out == begin || out[-1] != source) *out++ = source;
  };
  bool missing = looped;
  for (; at < end; ++at) {
    if (missing && *at >= self) take(self), missing = false;
    if (!looped || mode != Mode::fill || *at != self) take(*at);
  }
  if (missing) take(self);
  return out;
}

}  // namespace

ProgramArrays plain_program(const Csr &graph, Mode mode, bool idempotent, const int32_t *order) {
  if (order) check_permutation(order, graph.num_dst);
  const int64_t loops = mode == Mode::given ? 0 : std::min(graph.num_dst, graph.num_src);
  ProgramArrays out;
  out.source.resize(graph.num_edges() + loops);
  out.target.reserve(graph.num_dst);
  out.op_ptr.reserve(graph.num_dst + 1);
  out.op_ptr.push_back(0);
  out.tile_ptr.push_back(0);
  out.hub_ptr.push_back(0);
  int32_t *const first = out.source.data();
  int32_t *end = first;
  std::vector<int32_t> hubs;
  int64_t work = 0, rows = 0;
  Pace pace;
  const auto end_op = [&](int32_t to) {
    out.op_ptr.push_back(end - first);
    out.target.push_back(to);
  };
  const auto end_tile = [&] {
    const int64_t ops = static_cast<int64_t>(out.target.size());
    if (ops > out.tile_ptr.back()) out.tile_ptr.push_back(ops);
    work = rows = 0;
  };
  for (int64_t i = 0; i < graph.num_dst; ++i) {
    const int64_t v = order ? order[i] : i;
    const int64_t length = graph.row_ptr[v + 1] - graph.row_ptr[v];
    pace(1 + length);
    if (length > kHubLength) {
      hubs.push_back(static_cast<int32_t>(v));
      continue;
    }
    if (work + length + 1 > kPlainTileWork || rows == kPlainTileRows) end_tile();
    end = write_row(graph, v, mode, idempotent, end);
    end_op(static_cast<int32_t>(v));
    work += length + 1;
    ++rows;
  }
  end_tile();
  int32_t partial = static_cast<int32_t>(graph.num_dst);
  for (const int32_t row : hubs) {
    int32_t *const begin = end;
    const int64_t length = write_row(graph, row, mode, idempotent, begin) - begin;
    pace(length);
    const int64_t parts = std::max<int64_t>(1, (length + kHubPart - 1) / kHubPart);
    for (int64_t p = 1; p <= parts; ++p) {
      end = begin + length * p / parts;
      end_op(partial++);
      end_tile();
    }
    out.hub_row.push_back(row);
    out.hub_ptr.push_back(partial - graph.num_dst);
  }
  out.source.resize(end - first);
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

void check_program(const ProgramArrays &program, int64_t num_src, int64_t diagonal,
                   const Csr &graph, Mode mode, bool idempotent) {
  if (num_src != graph.num_src)
    refuse("the program reads ", num_src, " sources; expected ", graph.num_src);
  struct Difference {
    int64_t row, source, expected, found;
  };
  Difference first{graph.num_dst, 0, 0, 0};
  std::vector<std::vector<int32_t>> partial(program.hub_ptr.back());
  std::vector<char> written(graph.num_dst, 0);
  Row row;
  std::vector<int32_t> expected;
  Pace pace;
  auto compare = [&](int64_t v, std::vector<int32_t> &found) {
    pace(8 * static_cast<int64_t>(found.size()));
    written[v] = 1;
    if (v >= first.row) return;
    load_row(graph, v, mode, idempotent, row);
    expected = row.simple;
    expected.insert(expected.end(), row.extra.begin(), row.extra.end());
    for (int64_t d = diagonal; d < 0; ++d) expected.push_back(static_cast<int32_t>(v));
    for (int64_t d = diagonal; d > 0; --d) found.push_back(static_cast<int32_t>(v));
    sort(expected.data(), expected.data() + expected.size());
    sort(found.data(), found.data() + found.size());
    if (idempotent) found.erase(std::unique(found.begin(), found.end()), found.end());
    if (expected == found) return;
    size_t at = 0;
    while (at < expected.size() && at < found.size() && expected[at] == found[at]) ++at;
    int32_t source = INT32_MAX;
    if (at < expected.size()) source = expected[at];
    if (at < found.size()) source = std::min(source, found[at]);
    first = {v, source, std::count(expected.begin(), expected.end(), source),
             std::count(found.begin(), found.end(), source)};
  };
  std::vector<std::vector<int32_t>> scratch;
  for (size_t tile = 0; tile + 1 < program.tile_ptr.size(); ++tile) {
    scratch.clear();
    for (int64_t op = program.tile_ptr[tile]; op < program.tile_ptr[tile + 1]; ++op) {
      std::vector<int32_t> cover;
      for (int64_t s = program.op_ptr[op]; s < program.op_ptr[op + 1]; ++s) {
        const int32_t source = program.source[s];
        if (source >= 0) {
          cover.push_back(source);
        } else if (static_cast<size_t>(~source) < scratch.size()) {
          cover.insert(cover.end(), scratch[~source].begin(), scratch[~source].end());
        }
      }
      pace(1 + static_cast<int64_t>(cover.size()));
      const int32_t target = program.target[op];
      if (target < 0) {
        if (static_cast<size_t>(~target) >= scratch.size()) scratch.resize(~target + 1);
        scratch[~target] = std::move(cover);
      } else if (target < graph.num_dst) {
        compare(target, cover);
      } else if (target - graph.num_dst < static_cast<int64_t>(partial.size())) {
        partial[target - graph.num_dst] = std::move(cover);
      }
    }
  }
  for (size_t hub = 0; hub < program.hub_row.size(); ++hub) {
    std::vector<int32_t> cover;
    for (int64_t p = program.hub_ptr[hub]; p < program.hub_ptr[hub + 1]; ++p)
      cover.insert(cover.end(), partial[p].begin(), partial[p].end());
    compare(program.hub_row[hub], cover);
  }
  for (int64_t v = 0; v < first.row; ++v) {
    std::vector<int32_t> nothing;
    if (!written[v]) compare(v, nothing);
  }
  if (first.row < graph.num_dst)
    refuse("the program differs from the graph at row ", first.row, ", source ", first.source,
           ": expected ", first.expected, " edges, found ", first.found);
}

}  // namespace hag
