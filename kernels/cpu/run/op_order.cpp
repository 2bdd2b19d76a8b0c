#include "run/op_order.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace hag {
namespace {

// An op and the copies of its row that follow it.
struct Group {
  int64_t first, last;
  int32_t level;  // of an intermediate sum, from 1; rows of y come after all of them
  int64_t sources;
};

constexpr int32_t kLevelOfOutput = INT32_MAX;

class Grouping {
 public:
  explicit Grouping(const Ops &ops) : ops_(ops) {}

  // The tile's groups in their new order; false if a scratch row is written twice.
  bool of_tile(int64_t tile, std::vector<Group> &groups) {
    groups.clear();
    level_.assign(ops_.tile_scratch[tile], 0);
    const int64_t end = ops_.tile_ptr[tile + 1];
    for (int64_t op = ops_.tile_ptr[tile]; op < end;) {
      Group group = measure(op);
      const int32_t row = ops_.target[op];
      if (row < 0) {
        if (level_[~row] != 0) return false;
        level_[~row] = group.level;
        while (group.last < end && copies(group.last, row)) ++group.last;
      }
      op = group.last;
      groups.push_back(group);
    }
    std::stable_sort(groups.begin(), groups.end(), [](const Group &a, const Group &b) {
      return std::tie(a.level, a.sources) < std::tie(b.level, b.sources);
    });
    return true;
  }

 private:
  Group measure(int64_t op) const {
    const int64_t first = ops_.op_ptr[op], last = ops_.op_ptr[op + 1];
    Group group{op, op + 1, 1, last - first};
    for (int64_t k = first; k < last; ++k) {
      const int32_t s = ops_.source[k];
      if (s < 0) group.level = std::max(group.level, level_[~s] + 1);
    }
    if (ops_.target[op] >= 0) group.level = kLevelOfOutput;
    return group;
  }

  bool copies(int64_t op, int32_t row) const {
    const int64_t k = ops_.op_ptr[op];
    return ops_.target[op] >= 0 && ops_.op_ptr[op + 1] == k + 1 && ops_.source[k] == row;
  }

  const Ops &ops_;
  std::vector<int32_t> level_;  // of each scratch row of the tile, 0: not written yet
};

}  // namespace

OpOrder group_by_arity(const Ops &ops) {
  OpOrder order;
  order.op_ptr.reserve(ops.op_ptr.size);
  order.source.reserve(ops.source.size);
  order.target.reserve(ops.target.size);
  order.op_ptr.push_back(0);
  Grouping grouping(ops);
  std::vector<Group> groups;
  for (int64_t tile = 0; tile < ops.num_tiles(); ++tile) {
    if (!grouping.of_tile(tile, groups)) return {};
    for (const Group &group : groups)
      for (int64_t op = group.first; op < group.last; ++op) {
        const int64_t first = ops.op_ptr[op], last = ops.op_ptr[op + 1];
        order.source.insert(order.source.end(), ops.source.data + first, ops.source.data + last);
        order.target.push_back(ops.target[op]);
        order.op_ptr.push_back(static_cast<int64_t>(order.source.size()));
      }
  }
  return order;
}

}  // namespace hag
