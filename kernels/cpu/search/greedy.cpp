// Method "greedy": Algorithm 3 of the HAG paper over a whole graph. Components share nothing, so
// each is merged on its own; a merge of their sequences by redundancy gives the global order, and
// with it the intermediates that a global capacity admits.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <queue>

#include "interrupt.h"
#include "search/pairs.h"
#include "search/search.h"
#include "threads.h"

namespace hag {

namespace {

constexpr int64_t kBitSetRows = 1024;  // larger components are merged on sorted lists

struct Component {
  std::vector<int32_t> rows;
  std::vector<int32_t> columns;               // sources, in increasing order: item i is columns[i]
  std::vector<std::vector<int32_t>> rows_of;  // of each item, in increasing order
  std::vector<Merge> merges;                  // items are numbered inside the component
};

class UnionFind {
 public:
  explicit UnionFind(int64_t n) : parent_(n) { std::iota(parent_.begin(), parent_.end(), 0); }
  int32_t find(int32_t i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }
  void join(int32_t a, int32_t b) {
    a = find(a), b = find(b);
    if (a != b) parent_[std::max(a, b)] = std::min(a, b);
  }

 private:
  std::vector<int32_t> parent_;
};

std::vector<Component> find_components(const Csr &graph, Mode mode) {
  UnionFind sources(graph.num_src);
  Row row;
  Pace pace;
  std::vector<int32_t> first(graph.num_dst, -1);
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    load_row(graph, v, mode, true, row);
    pace(1 + static_cast<int64_t>(row.simple.size()));
    if (!row.simple.empty()) first[v] = row.simple.front();
    for (const int32_t source : row.simple) sources.join(row.simple.front(), source);
  }
  std::vector<Component> components;
  std::vector<int32_t> number(graph.num_src, -1);
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    if (first[v] < 0) {  // a row without sources is a component of its own
      components.emplace_back();
      components.back().rows.push_back(static_cast<int32_t>(v));
      continue;
    }
    int32_t &id = number[sources.find(first[v])];
    if (id < 0) {
      id = static_cast<int32_t>(components.size());
      components.emplace_back();
    }
    components[id].rows.push_back(static_cast<int32_t>(v));
  }
  return components;
}

void load_items(const Csr &graph, Mode mode, Component &component) {
  std::vector<std::pair<int32_t, int32_t>> entries;
  Row row;
  Pace pace;
  for (size_t r = 0; r < component.rows.size(); ++r) {
    load_row(graph, component.rows[r], mode, true, row);
    pace(1 + static_cast<int64_t>(row.simple.size()));
    for (const int32_t source : row.simple) entries.push_back({source, static_cast<int32_t>(r)});
  }
  sort(entries.data(), entries.data() + entries.size());
  for (const auto &[source, r] : entries) {
    pace();
    if (component.columns.empty() || component.columns.back() != source) {
      component.columns.push_back(source);
      component.rows_of.emplace_back();
    }
    component.rows_of.back().push_back(r);
  }
}

void merge_bit_sets(Component &component, int64_t capacity) {
  const int64_t words = (static_cast<int64_t>(component.rows.size()) + 63) / 64;
  const int64_t items = static_cast<int64_t>(component.columns.size());
  std::vector<uint64_t> bits(items * words);
  for (int64_t i = 0; i < items; ++i)
    for (const int32_t r : component.rows_of[i]) bits[i * words + r / 64] |= 1ull << (r % 64);
  PairMerger merger(bits, words, items);
  component.merges = merger.run(items, capacity, INT64_MAX);
}

// Takes the rows that hold both from the lists of both.
std::vector<int32_t> split_common(std::vector<int32_t> &first, std::vector<int32_t> &second) {
  std::vector<int32_t> both, rest;
  std::set_intersection(first.begin(), first.end(), second.begin(), second.end(),
                        std::back_inserter(both));
  for (std::vector<int32_t> *list : {&first, &second}) {
    rest.clear();
    std::set_difference(list->begin(), list->end(), both.begin(), both.end(),
                        std::back_inserter(rest));
    *list = rest;
  }
  return both;
}

// The same merges on sorted lists. Each item keeps its best partner of lower number; counts only
// fall, so what the queue holds is an upper bound and is counted anew when it comes up.
void merge_lists(Component &component, int64_t capacity) {
  Pace pace;
  std::vector<std::vector<int32_t>> rows_of = component.rows_of;
  std::vector<std::vector<int32_t>> items_of(component.rows.size());
  for (size_t i = 0; i < rows_of.size(); ++i)
    for (const int32_t r : rows_of[i]) items_of[r].push_back(static_cast<int32_t>(i));
  std::vector<int32_t> common(rows_of.size(), 0), touched;
  auto best_partner = [&](int32_t second) {
    Merge best{0, 0, second};
    touched.clear();
    for (const int32_t r : rows_of[second]) {
      pace(1 + static_cast<int64_t>(items_of[r].size()));
      for (const int32_t other : items_of[r]) {
        if (other >= second) break;
        if (common[other]++ == 0) touched.push_back(other);
      }
    }
    for (const int32_t other : touched) {
      const Merge entry{common[other], other, second};
      if (best < entry) best = entry;
      common[other] = 0;
    }
    return best;
  };
  std::priority_queue<Merge> queue;
  for (size_t i = 1; i < rows_of.size(); ++i) {
    const Merge entry = best_partner(static_cast<int32_t>(i));
    if (entry.redundancy > 1) queue.push(entry);
  }
  std::vector<int32_t> both;
  while (!queue.empty() && static_cast<int64_t>(component.merges.size()) < capacity) {
    Merge top = queue.top();
    queue.pop();
    pace(static_cast<int64_t>(rows_of[top.first].size() + rows_of[top.second].size()));
    both.clear();
    std::set_intersection(rows_of[top.first].begin(), rows_of[top.first].end(),
                          rows_of[top.second].begin(), rows_of[top.second].end(),
                          std::back_inserter(both));
    if (static_cast<int32_t>(both.size()) != top.redundancy) {
      top = best_partner(top.second);
      if (top.redundancy > 1) queue.push(top);
      continue;
    }
    const int32_t merged = static_cast<int32_t>(rows_of.size());
    rows_of.push_back(split_common(rows_of[top.first], rows_of[top.second]));
    common.push_back(0);
    for (const int32_t r : rows_of.back()) {
      auto &items = items_of[r];
      pace(1 + static_cast<int64_t>(items.size()));
      items.erase(std::remove_if(items.begin(), items.end(),
                                 [&](int32_t i) { return i == top.first || i == top.second; }),
                  items.end());
      items.push_back(merged);
    }
    component.merges.push_back(top);
    for (const int32_t item : {top.second, merged}) {
      const Merge entry = best_partner(item);
      if (entry.redundancy > 1) queue.push(entry);
    }
  }
}

// Cuts every component's merges to those among the `capacity` largest of all, in the order in
// which one run over the whole graph takes them.
void apply_capacity(std::vector<Component> &components, int64_t num_src, int64_t capacity) {
  struct Head {
    int32_t redundancy;
    int64_t first, second;
    size_t component;
    bool operator<(const Head &other) const {
      if (redundancy != other.redundancy) return redundancy < other.redundancy;
      return first != other.first ? first > other.first : second > other.second;
    }
  };
  std::vector<std::vector<int64_t>> number(components.size());  // of intermediates, global
  auto head = [&](size_t c) {
    const Merge &merge = components[c].merges[number[c].size()];
    const int64_t items = static_cast<int64_t>(components[c].columns.size());
    auto global = [&](int32_t item) {
      return item < items ? static_cast<int64_t>(components[c].columns[item])
                          : number[c][item - items];
    };
    return Head{merge.redundancy, global(merge.first), global(merge.second), c};
  };
  std::priority_queue<Head> queue;
  for (size_t c = 0; c < components.size(); ++c)
    if (!components[c].merges.empty()) queue.push(head(c));
  Pace pace;
  for (int64_t taken = 0; taken < capacity && !queue.empty(); ++taken) {
    pace(16);
    const size_t c = queue.top().component;
    queue.pop();
    number[c].push_back(num_src + taken);
    if (number[c].size() < components[c].merges.size()) queue.push(head(c));
  }
  for (size_t c = 0; c < components.size(); ++c) components[c].merges.resize(number[c].size());
}

TileProgram emit(const Csr &graph, Mode mode, bool idempotent, Component &component) {
  TileProgram out;
  auto &rows_of = component.rows_of;
  std::vector<int32_t> ref = component.columns;
  Pace pace;
  for (const Merge &merge : component.merges) {
    pace(16 + static_cast<int64_t>(rows_of[merge.first].size() + rows_of[merge.second].size()));
    rows_of.push_back(split_common(rows_of[merge.first], rows_of[merge.second]));
    ref.push_back(~out.scratch_rows);
    out.add({ref[merge.first], ref[merge.second]}, ~out.scratch_rows);
    ++out.scratch_rows;
  }
  std::vector<std::vector<int32_t>> sources(component.rows.size());
  for (size_t i = 0; i < rows_of.size(); ++i) {
    pace(1 + static_cast<int64_t>(rows_of[i].size()));
    for (const int32_t r : rows_of[i]) sources[r].push_back(ref[i]);
  }
  Row row;
  for (size_t r = 0; r < component.rows.size(); ++r) {
    load_row(graph, component.rows[r], mode, idempotent, row);
    pace(1 + static_cast<int64_t>(sources[r].size()));
    sources[r].insert(sources[r].end(), row.extra.begin(), row.extra.end());
    out.add(sources[r], component.rows[r]);
  }
  return out;
}

}  // namespace

ProgramArrays greedy_program(const Csr &graph, Mode mode, bool idempotent, int64_t capacity,
                             int threads) {
  std::vector<Component> components = find_components(graph, mode);
  auto parallel = [&](auto body) {
    std::atomic<int64_t> next{0};
    const int64_t size = static_cast<int64_t>(components.size());
    in_parallel_until_stopped(usable_threads(threads), [&](int) {
      Pace pace;
      for (int64_t c; (c = next++) < size;) {
        pace(16);
        body(components[c]);
      }
    });
  };
  std::atomic<int64_t> done{0};
  parallel([&](Component &component) {
    load_items(graph, mode, component);
    if (static_cast<int64_t>(component.rows.size()) <= kBitSetRows)
      merge_bit_sets(component, capacity);
    else merge_lists(component, capacity);
    report(static_cast<double>(++done) / static_cast<double>(components.size()));
  });
  apply_capacity(components, graph.num_src, capacity);
  std::vector<TileProgram> tiles(components.size());
  parallel([&](Component &component) {
    tiles[&component - components.data()] = emit(graph, mode, idempotent, component);
  });
  return assemble(graph, mode, idempotent, std::move(tiles), {});
}

}  // namespace hag
