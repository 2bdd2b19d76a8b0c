#include "batch/graph_set.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "interrupt.h"
#include "refuse.h"
#include "search/search.h"
#include "threads.h"

namespace hag {

namespace {

constexpr int64_t kLargeGraph = 20000;  // edges, from which on threads search one graph together
constexpr int64_t kBlockRows = 256;     // of the plain program's tiles

std::vector<int64_t> offsets(const std::vector<int64_t> &counts) {
  std::vector<int64_t> out(counts.size() + 1, 0);
  for (size_t i = 0; i < counts.size(); ++i) out[i + 1] = out[i] + counts[i];
  return out;
}

// body(graph) for each graph, on threads that share them.
template <class Body>
void each_graph(int64_t count, int threads, const Body &body) {
  std::atomic<int64_t> next{0};
  constexpr int64_t grain = 16;
  threads = static_cast<int>(
      std::clamp<int64_t>(count / grain, 1, static_cast<int64_t>(usable_threads(threads))));
  in_parallel_until_stopped(threads, [&](int) {
    for (int64_t first; (first = next.fetch_add(grain)) < count;) {
      poll();
      for (int64_t g = first; g < std::min(first + grain, count); ++g) body(g);
    }
  });
}

// The CSR of one graph, into its stretches of the arrays of all.
void build_one(const Ids &source, const Ids &target, int64_t first, int64_t last, int64_t nodes,
               const std::string &name, int64_t *ptr, int32_t *col) {
  const auto check = [&](int64_t id, int row, int64_t e) {
    if (id < 0 || id >= nodes)
      refuse(name, "edge_index[", row, ", ", e - first, "] is ", id, "; expected 0 <= id < ", nodes,
             row ? " (targets)" : " (sources)");
  };
  for (int64_t e = first; e < last; ++e) {
    const int64_t t = target[e];
    check(source[e], 0, e);
    check(t, 1, e);
    ++ptr[t + 1];
  }
  for (int64_t v = 0; v < nodes; ++v) ptr[v + 1] += ptr[v];
  for (int64_t e = first; e < last; ++e) {  // again: another thread may write to them
    const int64_t s = source[e], t = target[e];
    check(s, 0, e);
    check(t, 1, e);
    if (ptr[t] >= last - first) refuse(name, "edge_index was written to while it was read");
    col[ptr[t]++] = static_cast<int32_t>(s);
  }
  for (int64_t v = nodes; v > 0; --v) ptr[v] = ptr[v - 1];
  ptr[0] = 0;
  for (int64_t v = 0; v < nodes; ++v)
    if (!std::is_sorted(col + ptr[v], col + ptr[v + 1])) sort(col + ptr[v], col + ptr[v + 1]);
}

}  // namespace

namespace {

Program over(const ProgramArrays &arrays, int64_t num_nodes) {
  const auto view = [](const auto &values) {
    using T = std::decay_t<decltype(values[0])>;
    return View<T>{values.data(), static_cast<int64_t>(values.size())};
  };
  return Program(view(arrays.tile_ptr), view(arrays.op_ptr), view(arrays.source),
                 view(arrays.target), view(arrays.hub_row), view(arrays.hub_ptr), num_nodes,
                 num_nodes, 0);
}

Counts count_plain(const Csr &csr, Matrix matrix) {
  const Mode mode = matrix.first;
  const bool idempotent = matrix.second;
  std::vector<int64_t> seen_in(csr.num_src, -1);
  int64_t first = 0, reads = 0;
  Row row;
  for (int64_t v = 0; v < csr.num_dst; ++v) {
    load_row(csr, v, mode, idempotent, row);
    reads += static_cast<int64_t>(row.simple.size() + row.extra.size());
    for (const int32_t source : row.simple) {
      first += seen_in[source] != v / kBlockRows;
      seen_in[source] = v / kBlockRows;
    }
  }
  return {csr.num_dst, 0, reads - first, first, csr.num_dst};
}

Candidates count(const Program &p, const Csr &graph, Matrix matrix) {
  const int64_t intermediates = std::count_if(p.target().data, p.target().data + p.target().size,
                                              [](int32_t target) { return target < 0; });
  if (intermediates == 0) return {};
  const auto [scratch, first] =
      count_reads(p.tile_ptr().data, p.num_tiles(), p.op_ptr().data, p.source().data, p.num_src());
  const int64_t hubs = p.hub_row().size, ops = p.num_ops();
  return {
      count_plain(graph, matrix),
      {ops + hubs, scratch + intermediates, p.source().size - scratch - first + p.num_partials(),
       first, ops - intermediates + hubs}};
}

}  // namespace

Tree::Tree(ProgramArrays taken, const Csr &graph, Matrix matrix)
    : arrays(std::move(taken)),
      program(over(arrays, graph.num_dst)),
      counts(count(program, graph, matrix)) {}

Tree::Tree(ProgramArrays taken, int64_t num_nodes, const Candidates &known)
    : arrays(std::move(taken)), program(over(arrays, num_nodes)), counts(known) {}

GraphSet::GraphSet(const Ids &source, const Ids &target, const std::vector<int64_t> &edge_ptr,
                   const std::vector<int64_t> &num_nodes, int threads)
    : node_ptr_(offsets(num_nodes)), edge_ptr_(edge_ptr), facts_(num_nodes.size(), 0) {
  row_ptr_.assign(node_ptr_.back() + size(), 0);
  col_.resize(edge_ptr_.back());
  each_graph(size(), threads, [&](int64_t g) {
    const int64_t nodes = node_ptr_[g + 1] - node_ptr_[g];
    const std::string name = size() == 1 ? "" : "graph " + std::to_string(g) + ": ";
    build_one(source, target, edge_ptr_[g], edge_ptr_[g + 1], nodes, name,
              row_ptr_.data() + node_ptr_[g] + g, col_.data() + edge_ptr_[g]);
  });
  look_at_all();
}

GraphSet::GraphSet(std::vector<int64_t> num_nodes, std::vector<int64_t> row_ptr,
                   std::vector<int32_t> col)
    : node_ptr_(offsets(num_nodes)),
      edge_ptr_(num_nodes.size() + 1, 0),
      row_ptr_(std::move(row_ptr)),
      col_(std::move(col)),
      facts_(num_nodes.size(), 0) {
  const int64_t edges = static_cast<int64_t>(col_.size());
  if (static_cast<int64_t>(row_ptr_.size()) != node_ptr_.back() + size())
    refuse("row_ptr has ", row_ptr_.size(), " elements; expected ", node_ptr_.back() + size());
  for (int64_t g = 0; g < size(); ++g) {
    const int64_t length = row_ptr_[node_ptr_[g + 1] + g];
    if (length < 0 || length > edges - edge_ptr_[g])
      refuse("graph ", g, " has ", length, " edges; expected 0 to ", edges - edge_ptr_[g]);
    edge_ptr_[g + 1] = edge_ptr_[g] + length;
    check_csr(graph(g), length);
  }
  if (edge_ptr_.back() != edges)
    refuse("the graphs have ", edge_ptr_.back(), " edges; expected ", edges,
           " (the length of col)");
  look_at_all();
}

void GraphSet::look_at_all() {
  for (int64_t g = 0; g < size(); ++g) {
    const Csr csr = graph(g);
    bool empty = false;
    for (int64_t v = 0; v < csr.num_dst; ++v) empty |= csr.row_ptr[v] == csr.row_ptr[v + 1];
    facts_[g] = static_cast<uint8_t>(
        (empty ? kEmptyRows : 0) | (count_self_loops(csr).empty() ? 0 : kLoops) |
        (has_duplicates(csr) ? kDuplicates : 0) | (is_symmetric(csr) ? 0 : kAsymmetric));
    of_any_ |= facts_[g];
  }
}

std::unique_ptr<GraphSet> GraphSet::transposed() const {
  std::vector<int64_t> num_nodes(size()), row_ptr;
  std::vector<int32_t> col;
  row_ptr.reserve(row_ptr_.size());
  col.reserve(col_.size());
  for (int64_t g = 0; g < size(); ++g) {
    num_nodes[g] = node_ptr_[g + 1] - node_ptr_[g];
    const CsrArrays reversed = transpose_csr(graph(g), 1);
    row_ptr.insert(row_ptr.end(), reversed.row_ptr.begin(), reversed.row_ptr.end());
    col.insert(col.end(), reversed.col.begin(), reversed.col.end());
  }
  return std::make_unique<GraphSet>(std::move(num_nodes), std::move(row_ptr), std::move(col));
}

void GraphSet::search(Matrix matrix, const Costs *costs, int threads) {
  if (trees(matrix)) return;
  const Mode mode = matrix.first;
  const bool idempotent = matrix.second;
  Trees found(size());
  const auto take = [&](int64_t g, int of_one) {
    const Csr csr = graph(g);
    std::optional<ProgramArrays> program;
    if (costs) program = search_program(csr, mode, idempotent, true, *costs, of_one).program;
    bool has_hub = false;
    for (int64_t v = 0; !program && v < csr.num_dst; ++v)
      has_hub |= csr.row_ptr[v + 1] - csr.row_ptr[v] > kHubLength;
    if (has_hub) program = plain_program(csr, mode, idempotent, nullptr, csr.num_dst);
    if (program) found[g] = std::make_shared<const Tree>(std::move(*program), csr, matrix);
  };
  const auto is_large = [&](int64_t g) { return edge_ptr_[g + 1] - edge_ptr_[g] >= kLargeGraph; };
  for (int64_t g = 0; g < size(); ++g)
    if (is_large(g)) take(g, threads);
  each_graph(size(), threads, [&](int64_t g) {
    if (!is_large(g)) take(g, 1);
  });
  put(matrix, std::move(found));
}

void GraphSet::put(Matrix matrix, Trees trees) {
  const std::lock_guard<std::mutex> lock(mutex_);
  trees_.emplace(canonical(matrix), std::make_shared<const Trees>(std::move(trees)));
}

std::shared_ptr<const Trees> GraphSet::trees(Matrix matrix) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = trees_.find(canonical(matrix));
  return found == trees_.end() ? nullptr : found->second;
}

std::vector<Candidates> GraphSet::counts(Matrix matrix) const {
  const auto found = trees(matrix);
  std::vector<Candidates> out(size());
  for (int64_t g = 0; found && g < size(); ++g)
    if ((*found)[g]) out[g] = (*found)[g]->counts;
  return out;
}

std::unique_ptr<GraphSet> gather(const std::vector<Place> &places) {
  auto out = std::unique_ptr<GraphSet>(new GraphSet);
  out->node_ptr_ = out->edge_ptr_ = {0};
  for (const Place &place : places) {
    const Csr csr = place.set->graph(place.graph);
    out->node_ptr_.push_back(out->node_ptr_.back() + csr.num_dst);
    out->edge_ptr_.push_back(out->edge_ptr_.back() + csr.num_edges());
    out->row_ptr_.insert(out->row_ptr_.end(), csr.row_ptr, csr.row_ptr + csr.num_dst + 1);
    out->col_.insert(out->col_.end(), csr.col, csr.col + csr.num_edges());
    out->facts_.push_back(place.set->facts()[place.graph]);
    out->of_any_ |= out->facts_.back();
  }
  for (const Mode mode : {Mode::given, Mode::add, Mode::fill}) {
    for (const bool idempotent : {false, true}) {
      Trees trees;
      for (const Place &place : places) {
        const auto found = place.set->trees({mode, idempotent});
        if (!found) break;
        trees.push_back((*found)[place.graph]);
      }
      if (trees.size() == places.size()) out->put({mode, idempotent}, std::move(trees));
    }
  }
  return out;
}

// Side by side ----------------------------------------------------------------------------------

std::pair<CsrArrays, uint8_t> batch_graphs(const std::vector<Place> &places) {
  int64_t nodes = 0, edges = 0;
  uint8_t facts = 0;
  for (const Place &place : places) {
    const Csr csr = place.set->graph(place.graph);
    nodes += csr.num_dst;
    edges += csr.num_edges();
    facts |= place.set->facts()[place.graph];
  }
  if (nodes > INT32_MAX) refuse("the batch has ", nodes, " nodes; expected fewer than 2^31");
  CsrArrays out;
  out.row_ptr.reserve(nodes + 1);
  out.row_ptr.push_back(0);
  out.col.resize(edges);
  int32_t first = 0;
  int64_t at = 0;
  Pace pace;
  for (const Place &place : places) {
    const Csr csr = place.set->graph(place.graph);
    pace(csr.num_dst + csr.num_edges());
    for (int64_t v = 1; v <= csr.num_dst; ++v) out.row_ptr.push_back(at + csr.row_ptr[v]);
    for (int64_t e = 0; e < csr.num_edges(); ++e) out.col[at + e] = csr.col[e] + first;
    at += csr.num_edges();
    first += static_cast<int32_t>(csr.num_dst);
  }
  return {std::move(out), facts};
}

std::pair<Joint, bool> batch_programs(const std::vector<Place> &places, Matrix matrix) {
  std::vector<Part> parts;
  std::vector<std::shared_ptr<const Trees>> kept;
  const GraphSet *last = nullptr;
  bool shares = false;
  for (const Place &place : places) {
    if (place.set != last) {
      kept.push_back(place.set->trees(matrix));
      last = place.set;
      if (!kept.back()) refuse("the graphs were not searched for this matrix");
    }
    const Tree *tree = (*kept.back())[place.graph].get();
    shares |= tree != nullptr;
    parts.push_back({tree ? &tree->program : nullptr, place.set->graph(place.graph)});
  }
  return {concatenate(parts, matrix.first, matrix.second), shares};
}

}  // namespace hag
