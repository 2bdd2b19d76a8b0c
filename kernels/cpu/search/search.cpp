#include "search/search.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "interrupt.h"
#include "search/overlap_order.h"
#include "threads.h"

namespace hag {

namespace {

constexpr int64_t kLargestWholeTile = 512;  // a graph of more rows is cut
constexpr int64_t kTileEdges = 1 << 17;     // tiles have fewer rows where rows are long
constexpr int64_t kFewTiles = 8;            // fewer say nothing of the others: all are searched

struct Tiles {
  std::vector<int32_t> order;         // rows
  std::vector<int64_t> begin;         // tiles in `order`, [tiles + 1]
  std::vector<TileProgram> programs;  // of the tiles searched so far; the others are empty
  int64_t size() const { return static_cast<int64_t>(begin.size()) - 1; }
};

// A stretch of rows that shares no source with the rows outside it.
struct Block {
  int64_t begin, end;
};

bool is_hub(const Csr &graph, int64_t row) {
  return graph.row_ptr[row + 1] - graph.row_ptr[row] > kHubLength;
}

std::vector<Block> independent_blocks(const Csr &graph) {
  const int64_t n = graph.num_dst;
  std::vector<int32_t> smallest(n + 1, std::numeric_limits<int32_t>::max());
  for (int64_t v = n - 1; v >= 0; --v) {
    smallest[v] = smallest[v + 1];
    if (graph.row_ptr[v] < graph.row_ptr[v + 1] && !is_hub(graph, v))
      smallest[v] = std::min(smallest[v], graph.col[graph.row_ptr[v]]);
  }
  std::vector<Block> blocks;
  int32_t largest = -1;
  int64_t begin = 0;
  for (int64_t v = 0; v < n; ++v) {
    if (graph.row_ptr[v] < graph.row_ptr[v + 1] && !is_hub(graph, v))
      largest = std::max(largest, graph.col[graph.row_ptr[v + 1] - 1]);
    if (largest >= 0 && smallest[v + 1] > largest) {
      blocks.push_back({begin, v + 1});
      begin = v + 1;
    }
  }
  if (begin < n) blocks.push_back({begin, n});
  return blocks;
}

// The rows of the small blocks, packed whole, or of the large ones, cut.
Tiles make_tiles(const Csr &graph, const std::vector<Block> &blocks, bool large, const Costs &costs,
                 OverlapOrder *reorder) {
  Tiles tiles;
  tiles.begin.push_back(0);
  std::vector<int32_t> rows;
  auto end_tile = [&] {
    if (tiles.begin.back() < static_cast<int64_t>(tiles.order.size()))
      tiles.begin.push_back(static_cast<int64_t>(tiles.order.size()));
  };
  for (const Block &block : blocks) {
    if ((block.end - block.begin > kLargestWholeTile) != large) continue;
    rows.clear();
    for (int64_t v = block.begin; v < block.end; ++v)
      if (!is_hub(graph, v)) rows.push_back(static_cast<int32_t>(v));
    if (!large) {
      const int64_t open = static_cast<int64_t>(tiles.order.size()) - tiles.begin.back();
      if (open + static_cast<int64_t>(rows.size()) > costs.pack_rows) end_tile();
      tiles.order.insert(tiles.order.end(), rows.begin(), rows.end());
      continue;
    }
    if (reorder) reorder->apply(rows, costs.cut_rows);
    int64_t edges = 0;
    for (const int32_t v : rows) {
      const int64_t open = static_cast<int64_t>(tiles.order.size()) - tiles.begin.back();
      const int64_t length = graph.row_ptr[v + 1] - graph.row_ptr[v];
      if (open >= costs.cut_rows || edges + length > kTileEdges) {
        end_tile();
        edges = 0;
      }
      tiles.order.push_back(v);
      edges += length;
    }
    end_tile();
  }
  end_tile();
  return tiles;
}

double cost_of(const TileProgram &tile, const Costs &costs) {
  return static_cast<double>(tile.source.size()) + costs.intermediate * tile.scratch_rows;
}

// Searches the tiles 0, step, 2 step, ... that were not searched yet. Reports what is done where
// all are to be.
void search_tiles(const Csr &graph, Mode mode, bool idempotent, bool leave_one_out,
                  const Costs &costs, int threads, int64_t step, Tiles &tiles) {
  tiles.programs.resize(tiles.size());
  std::atomic<int64_t> next{0}, done{0};
  in_parallel_until_stopped(threads, [&](int) {
    TileSearch search(graph, mode, idempotent, leave_one_out, costs);
    for (int64_t t; (t = next.fetch_add(step)) < tiles.size();) {
      poll();
      TileProgram &program = tiles.programs[t];
      if (program.target.empty())
        program =
            search.run(tiles.order.data() + tiles.begin[t], tiles.begin[t + 1] - tiles.begin[t]);
      const int64_t all = ++done;
      if (step == 1) report(static_cast<double>(all) / static_cast<double>(tiles.size()));
    }
  });
}

}  // namespace

ProgramArrays search_program(const Csr &graph, Mode mode, bool idempotent, bool leave_one_out,
                             const Costs &costs, int threads) {
  threads = usable_threads(threads);
  std::vector<int32_t> hubs;
  for (int64_t v = 0; v < graph.num_dst; ++v)
    if (is_hub(graph, v)) hubs.push_back(static_cast<int32_t>(v));
  const std::vector<Block> blocks = independent_blocks(graph);

  auto search = [&](int64_t step, Tiles &tiles) {
    search_tiles(graph, mode, idempotent, leave_one_out, costs, threads, step, tiles);
    double total = 0.0;
    int64_t plain = 1;
    for (int64_t t = 0; t < tiles.size(); t += step) {
      total += cost_of(tiles.programs[t], costs);
      for (int64_t i = tiles.begin[t]; i < tiles.begin[t + 1]; ++i) {
        const int64_t v = tiles.order[i];
        plain += graph.row_ptr[v + 1] - graph.row_ptr[v] + (mode != Mode::given);
      }
    }
    return total / static_cast<double>(plain);  // cost, in that of the plain program
  };

  Tiles tiles = make_tiles(graph, blocks, false, costs, nullptr);
  int64_t large_edges = 0;
  for (const Block &block : blocks)
    if (block.end - block.begin > kLargestWholeTile)
      large_edges += graph.row_ptr[block.end] - graph.row_ptr[block.begin];
  if (large_edges) {
    // The order is chosen on a sample of the tiles; another than the graph's own must win clearly.
    // What is searched of the order that loses is lost: at most half of the tiles, unless few.
    auto sample = [&](Tiles &candidate) {
      const int64_t size = candidate.size();
      const int64_t step = std::max<int64_t>(1, std::min(large_edges >> 18, size / 16));
      return search(size < kFewTiles ? 1 : 2 * step, candidate);
    };
    CsrArrays reversed;
    Csr targets_of = graph;
    if (!is_symmetric(graph)) {
      reversed = transpose_csr(graph);
      targets_of = {reversed.row_ptr.data(), reversed.col.data(), graph.num_src, graph.num_dst};
    }
    OverlapOrder overlap(graph, targets_of);
    Tiles best = make_tiles(graph, blocks, true, costs, nullptr);
    Tiles reordered = make_tiles(graph, blocks, true, costs, &overlap);
    if (costs.reorder * sample(reordered) < sample(best)) best = std::move(reordered);
    const int64_t offset = static_cast<int64_t>(tiles.order.size());
    tiles.order.insert(tiles.order.end(), best.order.begin(), best.order.end());
    tiles.programs.resize(tiles.size());
    for (int64_t t = 0; t < best.size(); ++t) {
      tiles.begin.push_back(offset + best.begin[t + 1]);
      tiles.programs.push_back(std::move(best.programs[t]));
    }
  }

  if (search(1, tiles) > costs.worth_it) {
    tiles.programs = {};
    return plain_program(graph, mode, idempotent);
  }
  return assemble(graph, mode, idempotent, std::move(tiles.programs), hubs);
}

}  // namespace hag
