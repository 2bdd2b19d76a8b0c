// The search inside one tile: twins, leave-one-out classes, greedy pairs, pricing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "graph.h"

namespace hag {

// What things cost and how tiles are cut: Prices, in Python, has the figures and reasons.
struct Costs {
  double intermediate;    // a row of scratch, in rows read
  int64_t work_per_edge;  // words that greedy merging may compare, for each edge of the tile
  double worth_it;        // of the plain program's cost: above it, plain
  double reorder;         // a new order of the rows must be cheaper by this
  int64_t pack_rows;      // small graphs share a tile up to this many rows
  int64_t cut_rows;       // a large graph is cut into tiles of this many
};

// The ops of one tile. A source or target >= 0 is a row of x or y, < 0 a row of scratch.
struct TileProgram {
  std::vector<int32_t> arity;
  std::vector<int32_t> source;
  std::vector<int32_t> target;
  int32_t scratch_rows = 0;

  // Sources in increasing order, scratch first: kernels then guess right where a row is.
  void add(const std::vector<int32_t> &sources, int32_t to) {
    arity.push_back(static_cast<int32_t>(sources.size()));
    source.insert(source.end(), sources.begin(), sources.end());
    std::sort(source.end() - static_cast<int64_t>(sources.size()), source.end());
    target.push_back(to);
  }
  void shrink_to_fit() {
    arity.shrink_to_fit();
    source.shrink_to_fit();
    target.shrink_to_fit();
  }
};

// The ops of the rows as they stand.
TileProgram plain_tile(const Csr &graph, Mode mode, bool idempotent, const int32_t *rows,
                       int64_t num_rows);

class TileSearch {
 public:
  // `leave_one_out`: whether a row's number is also the number of its node among the sources.
  TileSearch(const Csr &graph, Mode mode, bool idempotent, bool leave_one_out, Costs costs);

  TileProgram run(const int32_t *rows, int64_t num_rows);

 private:
  struct Output {  // y[row] = a row class + extra copies
    int32_t row, extra_begin, extra_end;
  };
  struct Members {  // a leave-one-out class: positions of its rows in the tile
    std::vector<int32_t> rows;
  };
  struct RowClass {
    int64_t begin, end;  // its columns in columns_
    std::vector<int32_t> outputs;
    std::vector<int32_t> classes;  // leave-one-out classes whose outside sum this is
    int32_t node;
  };
  // A sum. Sources refer to nodes of lower number only, so the numbering is an order to compute in.
  struct Node {
    std::vector<int32_t> source;  // >= 0: row of x; < 0: ~node
    int32_t uses = 0;             // after inlining
    int32_t size = 0;             // sources after inlining
    int32_t scratch = -1;
    bool fixed = false;
    bool inlined = false;
  };

  void load(const int32_t *rows, int64_t num_rows);
  void find_leave_one_out();
  void merge_row_twins();
  void find_shared_sums();
  void use_suffix_sums(std::vector<int32_t> &sources) const;
  void add_leave_one_out_suffixes();
  void add_leave_one_out_prefixes();
  void price();
  void count_sizes();
  void count_uses();
  int64_t cost_in_reads() const;
  TileProgram emit();
  void emit_node(int32_t ref, TileProgram &out);
  void expand(int32_t ref, std::vector<int32_t> &out) const;
  int32_t new_node(std::vector<int32_t> source, bool fixed = false);
  bool equal_closed(int32_t a, int32_t b) const;

  const Csr graph_;
  const Mode mode_;
  const bool idempotent_;
  const bool leave_one_out_;
  const Costs costs_;

  const int32_t *rows_ = nullptr;
  int64_t num_rows_ = 0;
  std::vector<Output> outputs_;   // by position in the tile
  std::vector<int64_t> begin_;    // columns of each position, [num_rows + 1]
  std::vector<int32_t> columns_;  // of the rows, then of the leave-one-out classes' outsides
  std::vector<int32_t> extra_;
  std::vector<Members> members_;
  std::vector<std::vector<int32_t>> suffix_, prefix_;  // nodes of each leave-one-out class
  std::vector<int32_t> class_of_;                      // leave-one-out class of a position, or -1
  std::vector<std::pair<int64_t, int64_t>> outside_;   // columns of each class's outside
  std::vector<RowClass> row_classes_;
  std::vector<Node> nodes_;
  std::vector<int32_t> slot_;       // by column: its number in the tile, or -1
  std::vector<int32_t> suffix_of_;  // by column: the leave-one-out class it is in, or -1
  Row row_;
};

}  // namespace hag
