#include "search/tile_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "interrupt.h"
#include "search/pairs.h"

namespace hag {

namespace {

// min(c^2, 6c - 9) rows read for a class of c: below this size prefix and suffix sums do not pay.
constexpr int64_t kSmallestLeaveOneOut = 5;

// Groups 0..n-1 by hash and then by `equal` with the group's first: calls `found(first, member)`
// for every element in increasing order inside a group, first included.
template <typename Equal, typename Found>
void group_by_hash(const std::vector<uint64_t> &hash, Equal equal, Found found) {
  std::vector<int32_t> order(hash.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return hash[a] != hash[b] ? hash[a] < hash[b] : a < b; });
  std::vector<int32_t> firsts;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || hash[order[i]] != hash[order[i - 1]]) firsts.clear();
    int32_t first = -1;
    for (const int32_t f : firsts)
      if (equal(f, order[i])) {
        first = f;
        break;
      }
    if (first < 0) firsts.push_back(first = order[i]);
    found(first, order[i]);
  }
}

}  // namespace

TileProgram plain_tile(const Csr &graph, Mode mode, bool idempotent, const int32_t *rows,
                       int64_t num_rows) {
  TileProgram out;
  for (int64_t r = 0; r < num_rows; ++r) {
    const auto before = static_cast<int64_t>(out.source.size());
    append_row(graph, rows[r], mode, idempotent, out.source);
    out.arity.push_back(static_cast<int32_t>(static_cast<int64_t>(out.source.size()) - before));
    out.target.push_back(rows[r]);
  }
  out.shrink_to_fit();
  return out;
}

TileSearch::TileSearch(const Csr &graph, Mode mode, bool idempotent, bool leave_one_out,
                       Costs costs)
    : graph_(graph),
      mode_(mode),
      idempotent_(idempotent),
      leave_one_out_(leave_one_out && mode == Mode::given),
      costs_(costs),
      slot_(graph.num_src, -1),
      suffix_of_(leave_one_out_ ? graph.num_src : 0, -1) {}

TileProgram TileSearch::run(const int32_t *rows, int64_t num_rows) {
  rows_ = rows;
  num_rows_ = num_rows;
  load(rows, num_rows);
  const int64_t plain = static_cast<int64_t>(columns_.size() + extra_.size());
  if (leave_one_out_) find_leave_one_out();
  poll();
  merge_row_twins();
  nodes_.clear();
  add_leave_one_out_suffixes();
  poll();
  find_shared_sums();
  poll();
  add_leave_one_out_prefixes();
  price();
  const int64_t cost = cost_in_reads();
  for (const Members &members : members_)
    for (const int32_t row : members.rows) suffix_of_[rows_[row]] = -1;
  if (cost >= plain) return plain_tile(graph_, mode_, idempotent_, rows, num_rows);
  return emit();
}

void TileSearch::load(const int32_t *rows, int64_t num_rows) {
  outputs_.clear();
  columns_.clear();
  extra_.clear();
  begin_.assign(1, 0);
  members_.clear();
  outside_.clear();
  class_of_.assign(num_rows, -1);
  for (int64_t r = 0; r < num_rows; ++r) {
    load_row(graph_, rows[r], mode_, idempotent_, row_);
    columns_.insert(columns_.end(), row_.simple.begin(), row_.simple.end());
    begin_.push_back(static_cast<int64_t>(columns_.size()));
    const int32_t extra_begin = static_cast<int32_t>(extra_.size());
    extra_.insert(extra_.end(), row_.extra.begin(), row_.extra.end());
    outputs_.push_back({rows[r], extra_begin, static_cast<int32_t>(extra_.size())});
  }
}

// Whether the rows at two positions are the same once each has its own node added.
bool TileSearch::equal_closed(int32_t a, int32_t b) const {
  if (a == b) return true;
  const int64_t size = begin_[a + 1] - begin_[a];
  if (size != begin_[b + 1] - begin_[b]) return false;
  const int32_t *at = columns_.data() + begin_[a], *bt = columns_.data() + begin_[b];
  int64_t i = 0, j = 0, skipped_a = 0, skipped_b = 0;
  while (i < size || j < size) {
    if (i < size && at[i] == rows_[b]) {
      ++i, ++skipped_a;
    } else if (j < size && bt[j] == rows_[a]) {
      ++j, ++skipped_b;
    } else if (i == size || j == size || at[i] != bt[j]) {
      return false;
    } else {
      ++i, ++j;
    }
  }
  return skipped_a == 1 && skipped_b == 1;
}

// Rows whose closed neighbourhoods are equal: each aggregates the others of its class and one
// common outside.
void TileSearch::find_leave_one_out() {
  std::vector<uint64_t> hash;
  std::vector<int32_t> position;
  for (int32_t r = 0; r < num_rows_; ++r) {
    const int32_t *begin = columns_.data() + begin_[r], *end = columns_.data() + begin_[r + 1];
    if (end - begin < kSmallestLeaveOneOut - 1) continue;
    if (std::binary_search(begin, end, rows_[r])) continue;
    uint64_t sum = mix(static_cast<uint64_t>(rows_[r]));
    for (const int32_t *c = begin; c < end; ++c) sum += mix(static_cast<uint64_t>(*c));
    hash.push_back(sum);
    position.push_back(r);
  }
  std::vector<std::vector<int32_t>> groups(position.size());
  group_by_hash(
      hash, [&](int32_t a, int32_t b) { return equal_closed(position[a], position[b]); },
      [&](int32_t first, int32_t member) { groups[first].push_back(position[member]); });
  for (auto &group : groups) {
    if (static_cast<int64_t>(group.size()) < kSmallestLeaveOneOut) continue;
    const int32_t id = static_cast<int32_t>(members_.size());
    for (const int32_t r : group) {
      class_of_[r] = id;
      suffix_of_[rows_[r]] = id;
    }
    members_.push_back({std::move(group)});
  }
  for (size_t id = 0; id < members_.size(); ++id) {
    const int32_t first = members_[id].rows.front();
    const int64_t begin = static_cast<int64_t>(columns_.size());
    for (int64_t c = begin_[first]; c < begin_[first + 1]; ++c) {
      const int32_t column = columns_[c];
      const bool inside = suffix_of_[column] == static_cast<int32_t>(id);
      if (!inside) columns_.push_back(column);
    }
    outside_.push_back({begin, static_cast<int64_t>(columns_.size())});
  }
}

// Equal rows, and equal outsides of leave-one-out classes, become one row class.
void TileSearch::merge_row_twins() {
  struct Candidate {
    int64_t begin, end;
    int32_t output, leave_one_out;
  };
  std::vector<Candidate> candidates;
  std::vector<char> seen(members_.size(), 0);
  for (int32_t r = 0; r < num_rows_; ++r) {
    const int32_t id = class_of_[r];
    if (id < 0) {
      candidates.push_back({begin_[r], begin_[r + 1], r, -1});
    } else if (!seen[id]) {
      seen[id] = 1;
      candidates.push_back({outside_[id].first, outside_[id].second, -1, id});
    }
  }
  std::vector<uint64_t> hash(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i)
    for (int64_t c = candidates[i].begin; c < candidates[i].end; ++c)
      hash[i] += mix(static_cast<uint64_t>(columns_[c]));
  std::vector<std::vector<int32_t>> groups(candidates.size());
  group_by_hash(
      hash,
      [&](int32_t a, int32_t b) {
        return std::equal(
            columns_.begin() + candidates[a].begin, columns_.begin() + candidates[a].end,
            columns_.begin() + candidates[b].begin, columns_.begin() + candidates[b].end);
      },
      [&](int32_t first, int32_t member) { groups[first].push_back(member); });
  row_classes_.clear();
  for (const auto &group : groups) {
    if (group.empty()) continue;
    RowClass row{candidates[group[0]].begin, candidates[group[0]].end, {}, {}, -1};
    for (const int32_t member : group) {
      if (candidates[member].output >= 0) row.outputs.push_back(candidates[member].output);
      else row.classes.push_back(candidates[member].leave_one_out);
    }
    row_classes_.push_back(std::move(row));
  }
}

int32_t TileSearch::new_node(std::vector<int32_t> source, bool fixed) {
  Node node;
  node.source = std::move(source);
  node.fixed = fixed;
  nodes_.push_back(std::move(node));
  return static_cast<int32_t>(nodes_.size()) - 1;
}

// suffix[i] = x_i + ... + x_last of a class, for i = last - 1 down to 1. Where two read it, as many
// rows are read without it and one fewer is written, for a sum more. So every other one is priced
// like any intermediate: with all of them, more sums would be left than the paper counts.
void TileSearch::add_leave_one_out_suffixes() {
  suffix_.assign(members_.size(), {});
  for (size_t id = 0; id < members_.size(); ++id) {
    const auto &rows = members_[id].rows;
    auto &suffix = suffix_[id];
    suffix.assign(rows.size(), 0);
    suffix.back() = rows_[rows.back()];
    for (size_t i = rows.size() - 1; i-- > 1;)
      suffix[i] = ~new_node({rows_[rows[i]], suffix[i + 1]}, i % 2 == 0);
  }
}

// A whole leave-one-out class among the sources is its first member and the suffix sum of the
// others, which are there anyway.
void TileSearch::use_suffix_sums(std::vector<int32_t> &sources) const {
  if (!leave_one_out_ || members_.empty()) return;
  std::vector<int32_t> found(members_.size(), 0);
  bool any = false;
  for (const int32_t source : sources) {
    const int32_t id = suffix_of_[source];
    if (id >= 0 && ++found[id] == static_cast<int32_t>(members_[id].rows.size())) any = true;
  }
  if (!any) return;
  std::vector<int32_t> rest;
  auto whole = [&](int32_t id) {
    return id >= 0 && found[id] == static_cast<int32_t>(members_[id].rows.size());
  };
  for (const int32_t source : sources)
    if (!whole(suffix_of_[source])) rest.push_back(source);
  for (size_t id = 0; id < members_.size(); ++id) {
    if (!whole(static_cast<int32_t>(id))) continue;
    rest.push_back(rows_[members_[id].rows[0]]);
    rest.push_back(suffix_[id][1]);
  }
  sources = std::move(rest);
}

// Columns with the same rows become one sum; pairs of sums that rows share become sums; what is
// left of each row becomes its node.
void TileSearch::find_shared_sums() {
  const int64_t words = (static_cast<int64_t>(row_classes_.size()) + 63) / 64;
  std::vector<int32_t> columns;
  std::vector<uint64_t> bits;
  int64_t edges = 0;
  for (size_t r = 0; r < row_classes_.size(); ++r)
    for (int64_t c = row_classes_[r].begin; c < row_classes_[r].end; ++c, ++edges) {
      int32_t &slot = slot_[columns_[c]];
      if (slot < 0) {
        slot = static_cast<int32_t>(columns.size());
        columns.push_back(columns_[c]);
        bits.resize(bits.size() + words);
      }
      bits[slot * words + r / 64] |= 1ull << (r % 64);
    }
  for (const int32_t column : columns) slot_[column] = -1;

  std::vector<uint64_t> hash(columns.size());
  for (size_t i = 0; i < columns.size(); ++i)
    for (int64_t w = 0; w < words; ++w) hash[i] = mix(hash[i] ^ bits[i * words + w]);
  std::vector<std::vector<int32_t>> groups(columns.size());
  group_by_hash(
      hash,
      [&](int32_t a, int32_t b) {
        return std::equal(bits.begin() + a * words, bits.begin() + (a + 1) * words,
                          bits.begin() + b * words);
      },
      [&](int32_t first, int32_t member) { groups[first].push_back(columns[member]); });

  struct Item {
    int32_t column;  // the first of its group, which has its bits
    int32_t rows;
  };
  std::vector<Item> items;
  std::vector<std::vector<int32_t>> residual(row_classes_.size());
  for (size_t i = 0; i < columns.size(); ++i) {
    if (groups[i].empty()) continue;
    int32_t rows = 0, last = -1;
    for (int64_t w = 0; w < words; ++w) {
      if (!bits[i * words + w]) continue;
      rows += __builtin_popcountll(bits[i * words + w]);
      last = static_cast<int32_t>(64 * w + 63 - __builtin_clzll(bits[i * words + w]));
    }
    if (rows > 1) items.push_back({static_cast<int32_t>(i), rows});
    else residual[last].insert(residual[last].end(), groups[i].begin(), groups[i].end());
  }
  for (auto &sources : residual) use_suffix_sums(sources);
  std::stable_sort(items.begin(), items.end(),
                   [](const Item &a, const Item &b) { return a.rows > b.rows; });

  std::vector<int32_t> ref;  // of items, then of intermediates
  std::vector<uint64_t> item_bits;
  item_bits.reserve(items.size() * words * 2);
  for (const Item &item : items) {
    std::vector<int32_t> source = groups[item.column];
    std::sort(source.begin(), source.end());
    use_suffix_sums(source);
    ref.push_back(source.size() == 1 ? source[0] : ~new_node(std::move(source)));
    item_bits.insert(item_bits.end(), bits.begin() + item.column * words,
                     bits.begin() + (item.column + 1) * words);
  }

  const int64_t work = costs_.work_per_edge * edges;
  int64_t candidates = static_cast<int64_t>(items.size());
  if (words > 0 && candidates * candidates * words > work)
    candidates = std::min(candidates, static_cast<int64_t>(std::sqrt(work / words)) + 1);
  PairMerger merger(item_bits, words, static_cast<int64_t>(items.size()));
  for (const Merge &merge : merger.run(candidates, INT32_MAX, work))
    ref.push_back(~new_node({ref[merge.first], ref[merge.second]}));

  for (size_t i = 0; i < ref.size(); ++i)
    for (int64_t w = 0; w < words; ++w)
      for (uint64_t left = item_bits[i * words + w]; left; left &= left - 1)
        residual[64 * w + __builtin_ctzll(left)].push_back(ref[i]);
  for (size_t r = 0; r < row_classes_.size(); ++r)
    row_classes_[r].node = new_node(std::move(residual[r]));
}

// prefix[i] = outside + x_0 + ... + x_(i-1) of a class. The last one is priced, too.
void TileSearch::add_leave_one_out_prefixes() {
  prefix_.assign(members_.size(), {});
  for (const RowClass &row : row_classes_)
    for (const int32_t id : row.classes) {
      const auto &rows = members_[id].rows;
      auto &prefix = prefix_[id];
      prefix.push_back(~row.node);
      for (size_t i = 1; i + 1 < rows.size(); ++i) {
        const int32_t member = rows_[rows[i - 1]];
        const bool bare = i == 1 && row.begin == row.end;  // no outside: the first member itself
        const bool last = i + 2 == rows.size();
        prefix.push_back(bare ? member : ~new_node({prefix[i - 1], member}, !last));
      }
    }
}

void TileSearch::count_sizes() {
  for (Node &node : nodes_) {
    node.size = 0;
    for (const int32_t ref : node.source)
      node.size += ref < 0 && nodes_[~ref].inlined ? nodes_[~ref].size : 1;
  }
}

void TileSearch::count_uses() {
  for (Node &node : nodes_) node.uses = 0;
  auto use = [&](int32_t ref, int32_t times) {
    if (ref < 0) nodes_[~ref].uses += times;
  };
  for (const RowClass &row : row_classes_) use(~row.node, static_cast<int32_t>(row.outputs.size()));
  for (size_t id = 0; id < members_.size(); ++id) {
    const size_t size = members_[id].rows.size();
    for (size_t i = 0; i < size; ++i) {
      use(prefix_[id][std::min(i, size - 2)], 1);
      if (i + 1 < size) use(suffix_[id][i + 1], 1);
    }
  }
  for (size_t k = nodes_.size(); k-- > 0;)
    for (const int32_t ref : nodes_[k].source)
      use(ref, nodes_[k].inlined ? nodes_[k].uses : (nodes_[k].uses > 0));
}

// Keeps an intermediate of size s with u uses iff s u > s + u + c; the others are inlined.
// Inlining one changes the size and the uses of others, so this is done a few times. What is fixed
// pays as a whole.
void TileSearch::price() {
  for (int round = 0; round < 4; ++round) {
    count_sizes();
    bool changed = false;
    count_uses();
    // From the last node to the first, so that the uses of a node are settled when it is priced.
    std::vector<int32_t> added(nodes_.size(), 0);
    for (size_t k = nodes_.size(); k-- > 0;) {
      Node &node = nodes_[k];
      node.uses += added[k];
      if (node.fixed || node.inlined) {
        if (node.inlined && added[k])
          for (const int32_t ref : node.source)
            if (ref < 0) added[~ref] += added[k];
        continue;
      }
      const double size = node.size, uses = node.uses;
      const bool keep = round == 0 ? node.uses > 1 && node.size > 1
                                   : size * uses > size + uses + costs_.intermediate;
      if (keep) continue;
      node.inlined = changed = true;
      for (const int32_t ref : node.source)
        if (ref < 0) added[~ref] += node.uses - (node.uses > 0);
    }
    if (!changed && round > 0) break;
  }
  count_sizes();
  count_uses();
}

int64_t TileSearch::cost_in_reads() const {
  double cost = static_cast<double>(extra_.size());
  for (const Node &node : nodes_)
    if (!node.inlined && node.uses > 0) cost += node.size + costs_.intermediate;
  auto read = [&](int32_t ref) { return ref < 0 && nodes_[~ref].inlined ? nodes_[~ref].size : 1; };
  for (const RowClass &row : row_classes_)
    cost += static_cast<double>(row.outputs.size()) * read(~row.node);
  for (size_t id = 0; id < members_.size(); ++id) {
    const size_t size = members_[id].rows.size();
    for (size_t i = 0; i < size; ++i) {
      cost += read(prefix_[id][std::min(i, size - 2)]);
      cost += i + 1 < size ? read(suffix_[id][i + 1]) : 1;
    }
  }
  return static_cast<int64_t>(std::ceil(cost));
}

void TileSearch::expand(int32_t ref, std::vector<int32_t> &out) const {
  if (ref >= 0) {
    out.push_back(ref);
  } else if (nodes_[~ref].inlined) {
    for (const int32_t source : nodes_[~ref].source) expand(source, out);
  } else {
    out.push_back(~nodes_[~ref].scratch);
  }
}

// Computes a node, and before it what it needs, unless it is there already.
void TileSearch::emit_node(int32_t ref, TileProgram &out) {
  if (ref >= 0) return;
  Node &node = nodes_[~ref];
  if (node.scratch >= 0) return;
  for (const int32_t source : node.source) emit_node(source, out);
  if (node.inlined) return;
  std::vector<int32_t> sources;
  for (const int32_t source : node.source) expand(source, sources);
  node.scratch = out.scratch_rows++;
  out.add(sources, ~node.scratch);
}

TileProgram TileSearch::emit() {
  TileProgram out;
  std::vector<int32_t> sources;
  auto write = [&](int32_t position, std::initializer_list<int32_t> refs) {
    const Output &output = outputs_[position];
    sources.clear();
    for (const int32_t ref : refs) {
      emit_node(ref, out);
      expand(ref, sources);
    }
    sources.insert(sources.end(), extra_.begin() + output.extra_begin,
                   extra_.begin() + output.extra_end);
    out.add(sources, output.row);
  };
  for (const RowClass &row : row_classes_) {
    for (const int32_t position : row.outputs) write(position, {~row.node});
    for (const int32_t id : row.classes) {
      const auto &members = members_[id].rows;
      const size_t last = members.size() - 1;
      for (size_t i = 0; i < last; ++i) write(members[i], {prefix_[id][i], suffix_[id][i + 1]});
      write(members[last], {prefix_[id][last - 1], rows_[members[last - 1]]});
    }
  }
  out.shrink_to_fit();
  return out;
}

}  // namespace hag
