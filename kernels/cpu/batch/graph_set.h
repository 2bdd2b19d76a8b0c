// Many graphs, each with its own programs: made in one go, batched by number.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "graph.h"
#include "program_arrays.h"
#include "run/aggregate.h"
#include "run/concatenate.h"
#include "search/tile_search.h"

namespace hag {

// What is known of a graph, as bits.
constexpr uint8_t kLoops = 1, kDuplicates = 2, kAsymmetric = 4, kEmptyRows = 8;

// Counts of what a program does, as Work, in Python, has them: ops, scratch, again, first, written.
using Counts = std::array<int64_t, 5>;

// Which matrix of a graph, and whether its edges are a set.
using Matrix = std::pair<Mode, bool>;

// Of the plain program of a graph, and of the one that was found: all 0 where that shares nothing.
using Candidates = std::array<Counts, 2>;

// The program that was found for a graph.
struct Tree {
  Tree(ProgramArrays arrays, const Csr &graph, Matrix matrix);
  Tree(ProgramArrays arrays, int64_t num_nodes, const Candidates &counts);
  const ProgramArrays arrays;
  const Program program;  // over these arrays, which it checks
  const Candidates counts;
};

struct Place;

// The programs of all graphs for one matrix; null where the plain one is as good.
using Trees = std::vector<std::shared_ptr<const Tree>>;

// Square graphs in canonical form. They never change; programs are added.
class GraphSet {
 public:
  // Graph g has edges edge_ptr[g] to edge_ptr[g + 1], between its own nodes, which count from 0.
  // Throws std::invalid_argument naming the graph and the first id that is out of range.
  GraphSet(const Ids &source, const Ids &target, const std::vector<int64_t> &edge_ptr,
           const std::vector<int64_t> &num_nodes, int threads);

  // Graphs that are in canonical form. Throws std::invalid_argument where one is not.
  // `row_ptr`: of each graph from 0, one after the other.
  GraphSet(std::vector<int64_t> num_nodes, std::vector<int64_t> row_ptr, std::vector<int32_t> col);

  int64_t size() const { return static_cast<int64_t>(facts_.size()); }
  Csr graph(int64_t g) const {
    const int64_t nodes = node_ptr_[g + 1] - node_ptr_[g];
    return {row_ptr_.data() + node_ptr_[g] + g, col_.data() + edge_ptr_[g], nodes, nodes};
  }
  const std::vector<uint8_t> &facts() const { return facts_; }
  const std::vector<int64_t> &node_ptr() const { return node_ptr_; }
  const std::vector<int64_t> &edge_ptr() const { return edge_ptr_; }
  const std::vector<int64_t> &row_ptr() const { return row_ptr_; }
  const std::vector<int32_t> &col() const { return col_; }

  // One matrix for those that come to the same program for every graph.
  Matrix canonical(Matrix matrix) const {
    if (matrix.first == Mode::fill && !(of_any_ & kLoops)) matrix.first = Mode::add;
    if (!(of_any_ & kDuplicates)) matrix.second = false;
    return matrix;
  }

  std::unique_ptr<GraphSet> transposed() const;

  // Searches each graph as `search_program` does, unless that was done. Without `costs`: takes the
  // plain programs.
  void search(Matrix matrix, const Costs *costs, int threads);

  // Takes programs from a file, which must be some graph's of so many nodes.
  void put(Matrix matrix, Trees trees);

  // Null before `search`.
  std::shared_ptr<const Trees> trees(Matrix matrix) const;

  // What the candidates of each graph do: all 0 where no program was found.
  std::vector<Candidates> counts(Matrix matrix) const;

 private:
  friend std::unique_ptr<GraphSet> gather(const std::vector<Place> &places);
  GraphSet() = default;
  void look_at_all();

  std::vector<int64_t> node_ptr_, edge_ptr_;  // of the graphs
  std::vector<int64_t> row_ptr_;              // of each graph from 0, one after the other
  std::vector<int32_t> col_;
  std::vector<uint8_t> facts_;
  uint8_t of_any_ = 0;        // the facts of all
  mutable std::mutex mutex_;  // of trees_
  std::map<Matrix, std::shared_ptr<const Trees>> trees_;
};

// A graph of a set.
struct Place {
  const GraphSet *set;
  int64_t graph;
};

// A set of such graphs, with the programs for all matrices of which every set has some.
std::unique_ptr<GraphSet> gather(const std::vector<Place> &places);

// Graphs side by side, and the facts of all.
std::pair<CsrArrays, uint8_t> batch_graphs(const std::vector<Place> &places);

// The program of graphs side by side, in O(ops) of it; whether it shares sums. The sets must have
// been searched.
std::pair<Joint, bool> batch_programs(const std::vector<Place> &places, Matrix matrix);

}  // namespace hag
