#include "search/search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "interrupt.h"
#include "search/overlap_order.h"
#include "threads.h"

namespace hag {

namespace {

constexpr int64_t kLargestWholeTile = 512;  // a graph of more rows is cut
constexpr int64_t kTileEdges = 1 << 17;     // tiles have fewer rows where rows are long

// Tiles that are looked at before all are searched. In doubt, three times as many, and again.
constexpr int64_t kFirstLooks = 6, kMostLooks = 9 * kFirstLooks;
constexpr double kDoubt = 2.0;  // in standard errors
// Rows of a tile that is filled for a look alone. Filled first, it shares more than most, and so
// does not say less for the search than the larger ones would.
constexpr int64_t kLookRows = 64;

struct Tile {
  std::vector<int32_t> rows;
  int64_t plain = 0;    // rows that the plain program reads
  TileProgram program;  // empty until it is searched
  double cost = -1.0;   // in rows read; below 0 until it is searched

  double ratio() const { return plain ? cost / static_cast<double>(plain) : 1.0; }
};
using Tiles = std::vector<Tile>;

// A stretch of rows that shares no source with the rows outside it.
struct Block {
  int64_t begin, end;

  bool large() const { return end - begin > kLargestWholeTile; }
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

// The small blocks, packed whole.
Tiles pack_tiles(const Csr &graph, const std::vector<Block> &blocks, const Costs &costs) {
  Tiles tiles;
  std::vector<int32_t> rows, open;
  auto end_tile = [&] {
    if (open.empty()) return;
    tiles.emplace_back();
    tiles.back().rows.swap(open);
  };
  for (const Block &block : blocks) {
    if (block.large()) continue;
    rows.clear();
    for (int64_t v = block.begin; v < block.end; ++v)
      if (!is_hub(graph, v)) rows.push_back(static_cast<int32_t>(v));
    if (static_cast<int64_t>(open.size() + rows.size()) > costs.pack_rows) end_tile();
    open.insert(open.end(), rows.begin(), rows.end());
  }
  end_tile();
  return tiles;
}

// The rows of the large blocks.
std::vector<int32_t> rows_to_cut(const Csr &graph, const std::vector<Block> &blocks) {
  std::vector<int32_t> rows;
  for (const Block &block : blocks)
    for (int64_t v = block.begin; block.large() && v < block.end; ++v)
      if (!is_hub(graph, v)) rows.push_back(static_cast<int32_t>(v));
  return rows;
}

// Rows cut in the order in which they stand.
Tiles cut_tiles(const Csr &graph, const std::vector<int32_t> &rows, const TileSize &size) {
  Tiles tiles;
  int64_t edges = 0;
  for (const int32_t v : rows) {
    const int64_t length = graph.row_ptr[v + 1] - graph.row_ptr[v];
    if (tiles.empty() || static_cast<int64_t>(tiles.back().rows.size()) >= size.rows ||
        edges + length > size.edges) {
      tiles.emplace_back();
      edges = 0;
    }
    tiles.back().rows.push_back(v);
    edges += length;
  }
  return tiles;
}

// Indices at which equal steps along all the weights end up, `count` of them: three times as many
// hold these. A stretch that has more than a step of the weights has one of them.
template <class Weight>
std::vector<size_t> spread(int64_t count, size_t size, const Weight &weight) {
  double total = 0.0, passed = 0.0;
  for (size_t i = 0; i < size; ++i) total += static_cast<double>(weight(i));
  std::vector<size_t> out;
  for (size_t i = 0; i < size; ++i) {
    passed += static_cast<double>(weight(i)) * static_cast<double>(2 * count);
    while (static_cast<int64_t>(out.size()) < count &&
           passed > total * static_cast<double>(2 * out.size() + 1))
      out.push_back(i);
  }
  return out;
}

// What tiles cost, by some of them, each drawn with a chance proportional to its plain cost.
struct Estimate {
  double cost = 0.0, plain = 0.0, variance = 0.0;

  Estimate(double all, const Tiles &tiles, const std::vector<size_t> &drawn) : plain(all) {
    if (drawn.empty()) {
      cost = plain;
      return;
    }
    double sum = 0.0, squares = 0.0;
    for (const size_t t : drawn) {
      sum += tiles[t].ratio();
      squares += tiles[t].ratio() * tiles[t].ratio();
    }
    const double n = static_cast<double>(drawn.size()), mean = sum / n;
    cost = mean * plain;
    variance = plain * plain * std::max(0.0, squares / n - mean * mean) / std::max(1.0, n - 1.0);
  }
};

class Search {
 public:
  Search(const Csr &graph, Mode mode, bool idempotent, bool leave_one_out, const Costs &costs,
         int threads)
      : graph_(graph),
        mode_(mode),
        idempotent_(idempotent),
        leave_one_out_(leave_one_out),
        costs_(costs),
        searches_(threads) {}

  Found run();

 private:
  int64_t plain(int32_t row) const {
    return graph_.row_ptr[row + 1] - graph_.row_ptr[row] + (mode_ != Mode::given);
  }
  double count_plain(Tiles &tiles) const;
  void search(const std::vector<Tile *> &tiles, bool all);
  void search(Tiles &tiles, std::vector<size_t> drawn);
  Estimate look(int64_t count, Tiles &tiles, double all);
  Estimate look_ahead(int64_t count, const std::vector<int32_t> &rows, Tiles &looks);
  bool can_pay(const std::vector<int32_t> &rows);
  void choose_order(const std::vector<int32_t> &rows);

  const Csr &graph_;
  const Mode mode_;
  const bool idempotent_, leave_one_out_;
  const Costs &costs_;
  std::vector<std::unique_ptr<TileSearch>> searches_;  // of each thread

  TileSize size_{costs_.cut_rows, kTileEdges};
  Tiles whole_, cut_;  // of the small blocks, of the large ones
  double plain_whole_ = 0.0, plain_cut_ = 0.0;
  CsrArrays reversed_;
  Csr targets_of_{};
  std::optional<OverlapOrder> overlap_;
  bool reordered_ = false;
};

double Search::count_plain(Tiles &tiles) const {
  double all = 0.0;
  for (Tile &tile : tiles) {
    tile.plain = 0;
    for (const int32_t v : tile.rows) tile.plain += plain(v);
    all += static_cast<double>(tile.plain);
  }
  return all;
}

// Searches those tiles that were not searched yet. Reports what is done where all are to be.
void Search::search(const std::vector<Tile *> &tiles, bool all) {
  std::atomic<size_t> next{0}, done{0};
  const int threads =
      static_cast<int>(std::min(searches_.size(), std::max<size_t>(1, tiles.size())));
  in_parallel_until_stopped(threads, [&](int thread) {
    std::unique_ptr<TileSearch> &search = searches_[thread];
    if (!search)
      search = std::make_unique<TileSearch>(graph_, mode_, idempotent_, leave_one_out_, costs_);
    for (size_t t; (t = next++) < tiles.size();) {
      poll();
      Tile &tile = *tiles[t];
      if (tile.cost < 0) {
        tile.program = search->run(tile.rows.data(), static_cast<int64_t>(tile.rows.size()));
        tile.cost = static_cast<double>(tile.program.source.size()) +
                    costs_.intermediate * tile.program.scratch_rows;
      }
      const size_t so_far = ++done;
      if (all) report(static_cast<double>(so_far) / static_cast<double>(tiles.size()));
    }
  });
}

// Each of those drawn once: two threads must not search the same one.
void Search::search(Tiles &tiles, std::vector<size_t> drawn) {
  std::sort(drawn.begin(), drawn.end());
  drawn.erase(std::unique(drawn.begin(), drawn.end()), drawn.end());
  std::vector<Tile *> chosen;
  for (const size_t t : drawn) chosen.push_back(&tiles[t]);
  search(chosen, false);
}

// What tiles cost, by `count` of them.
Estimate Search::look(int64_t count, Tiles &tiles, double all) {
  const auto drawn = spread(count, tiles.size(), [&](size_t t) { return tiles[t].plain; });
  search(tiles, drawn);
  return {all, tiles, drawn};
}

// What the large blocks cost in the overlap order, by tiles that are filled for this alone, from
// `count` rows on. `looks` has those of all counts before.
Estimate Search::look_ahead(int64_t count, const std::vector<int32_t> &rows, Tiles &looks) {
  std::vector<size_t> drawn;
  for (const size_t i : spread(count, rows.size(), [&](size_t r) { return plain(rows[r]); })) {
    size_t t = 0;
    if (overlap_->is_left(rows[i])) {
      t = looks.size();
      looks.emplace_back();
      looks.back().rows = overlap_->fill(rows[i], {std::min(kLookRows, size_.rows), size_.edges});
    } else {
      auto holds = [&](const Tile &tile) {
        return std::find(tile.rows.begin(), tile.rows.end(), rows[i]) != tile.rows.end();
      };
      while (!holds(looks[t])) ++t;
    }
    drawn.push_back(t);
  }
  count_plain(looks);
  search(looks, drawn);
  return {plain_cut_, looks, drawn};
}

// Whether a search of all tiles can pay, by some of them: those of the large blocks in the overlap
// order, which shares more than the graph's own.
bool Search::can_pay(const std::vector<int32_t> &rows) {
  const double most = costs_.worth_it * (plain_whole_ + plain_cut_);
  Tiles looks;
  const int64_t tiles = static_cast<int64_t>(whole_.size() + rows.size() / size_.rows);
  for (int64_t count = kFirstLooks;; count *= 3) {
    const Estimate whole = look(count, whole_, plain_whole_);
    const Estimate cut = look_ahead(count, rows, looks);
    const double above = whole.cost + cut.cost - most;
    const double doubt = kDoubt * std::sqrt(whole.variance + cut.variance);
    if (above > doubt || (above > 0 && count == kMostLooks)) return false;
    if (above < -doubt || count == kMostLooks) break;
    if (3 * count > tiles) break;  // more looks would cost as much as the search
  }
  for (const Tile &tile : looks) overlap_->give_back(tile.rows);
  return true;
}

// Takes the overlap order if it wins clearly over the graph's own, or pays where that does not, by
// some tiles of each. What is searched of the order that loses is lost.
void Search::choose_order(const std::vector<int32_t> &rows) {
  Tiles own = cut_tiles(graph_, rows, size_), reordered;
  for (std::vector<int32_t> next; !(next = overlap_->fill(size_)).empty();) {
    reordered.emplace_back();
    reordered.back().rows = std::move(next);
  }
  overlap_.reset();
  reversed_ = {};
  count_plain(own);
  count_plain(reordered);
  const int64_t most = std::min<int64_t>(kMostLooks, (static_cast<int64_t>(own.size()) + 1) / 2);
  double above = 0.0, doubt = 0.0;
  for (int64_t count = 2; std::abs(above) <= doubt && count <= most; count *= 3) {
    const Estimate a = look(count, own, plain_cut_), b = look(count, reordered, plain_cut_);
    const double pays = costs_.worth_it * plain_cut_;
    above = a.cost > pays && b.cost <= pays ? b.cost - a.cost : costs_.reorder * b.cost - a.cost;
    doubt = kDoubt * std::sqrt(a.variance + costs_.reorder * costs_.reorder * b.variance);
  }
  reordered_ = above < 0.0;
  cut_ = std::move(reordered_ ? reordered : own);
}

Found Search::run() {
  const std::vector<Block> blocks = independent_blocks(graph_);
  whole_ = pack_tiles(graph_, blocks, costs_);
  plain_whole_ = count_plain(whole_);
  const std::vector<int32_t> rows = rows_to_cut(graph_, blocks);
  for (const int32_t v : rows) plain_cut_ += static_cast<double>(plain(v));
  if (!rows.empty()) {
    targets_of_ = graph_;
    if (!is_symmetric(graph_)) {
      reversed_ = transpose_csr(graph_, static_cast<int>(searches_.size()));
      targets_of_ = {reversed_.row_ptr.data(), reversed_.col.data(), graph_.num_src,
                     graph_.num_dst};
    }
    overlap_.emplace(graph_, targets_of_, rows);
  }
  Found found;
  if (costs_.worth_it < 1.0 && !can_pay(rows)) return found;
  if (overlap_) choose_order(rows);

  std::vector<Tile *> all;
  double cost = 0.0;
  for (Tiles *tiles : {&whole_, &cut_})
    for (Tile &tile : *tiles) all.push_back(&tile);
  search(all, true);
  std::vector<int32_t> hubs;
  for (int64_t v = 0; v < graph_.num_dst; ++v)
    if (is_hub(graph_, v)) hubs.push_back(static_cast<int32_t>(v));
  std::vector<TileProgram> programs;
  for (Tile *tile : all) {
    cost += tile->cost;
    programs.push_back(std::move(tile->program));
    if (reordered_) found.order.insert(found.order.end(), tile->rows.begin(), tile->rows.end());
  }
  if (reordered_) found.order.insert(found.order.end(), hubs.begin(), hubs.end());
  if (cost > costs_.worth_it * (plain_whole_ + plain_cut_)) return found;
  whole_ = cut_ = {};
  found.program = assemble(graph_, mode_, idempotent_, std::move(programs), hubs);
  return found;
}

}  // namespace

Found search_program(const Csr &graph, Mode mode, bool idempotent, bool leave_one_out,
                     const Costs &costs, int threads) {
  return Search(graph, mode, idempotent, leave_one_out, costs, usable_threads(threads)).run();
}

}  // namespace hag
