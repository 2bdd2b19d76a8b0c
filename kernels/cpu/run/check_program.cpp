#include "run/check_program.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "interrupt.h"
#include "refuse.h"
#include "threads.h"

namespace hag {

namespace {

struct Range {
  int64_t at, end;
};

// Rows of the graph as the program is to sum them.
class Expected {
 public:
  Expected(const Program &program, const Csr &graph, Mode mode, bool idempotent)
      : program_(program), graph_(graph), mode_(mode), idempotent_(idempotent) {}

  // Of row `v`, in increasing order; without what the diagonal adds, with what it takes away.
  View<int32_t> row(int64_t v) {
    const int64_t first = graph_.row_ptr[v], length = graph_.row_ptr[v + 1] - first;
    if (mode_ == Mode::given && !idempotent_ && program_.diagonal() == 0)
      return {graph_.col + first, length};
    row_.clear();
    append_row(graph_, v, mode_, idempotent_, row_);
    const auto self = static_cast<int32_t>(v);
    const auto at = std::lower_bound(row_.begin(), row_.end(), self);
    if (program_.diagonal() < 0) row_.insert(at, self);
    lacks_ = program_.diagonal() > 0 && (at == row_.end() || *at != self);
    if (program_.diagonal() > 0 && !lacks_) row_.erase(at);
    return {row_.data(), static_cast<int64_t>(row_.size())};
  }

  // Whether the diagonal adds to the last row what it is not to have.
  bool lacks_self() const { return lacks_; }

 private:
  const Program &program_;
  const Csr &graph_;
  const Mode mode_;
  const bool idempotent_;
  std::vector<int32_t> row_;
  bool lacks_ = false;
};

// The ops of one tile after the other, expanded to sources of the graph.
class Expansion {
 public:
  explicit Expansion(const Program &program) : program_(program) {}

  void start_tile(int64_t tile) {
    first_op_ = program_.tile_ptr()[tile];
    first_ = program_.op_ptr()[first_op_];
    has_scratch_ = program_.tile_scratch()[tile] > 0;
    if (!has_scratch_) return;
    writer_.resize(program_.tile_scratch()[tile]);
    sources_.resize(program_.op_ptr()[program_.tile_ptr()[tile + 1]] - first_);
  }

  // Scratch rows are written again and again: a source of an op is who wrote it last before that,
  // or what that one copied.
  void start_op(int64_t op) {
    if (!has_scratch_) return;
    const int64_t first = program_.op_ptr()[op], last = program_.op_ptr()[op + 1];
    for (int64_t k = first; k < last; ++k) {
      const int32_t s = program_.source()[k];
      sources_[k - first_] = s >= 0 ? s : writer_[~s];
    }
    const int32_t target = program_.target()[op], self = ~static_cast<int32_t>(op - first_op_);
    if (target < 0) writer_[~target] = last - first == 1 ? sources_[first - first_] : self;
  }

  // The sources of an op that needs no expansion; null where there may be others.
  View<int32_t> plain(int64_t op) const {
    if (has_scratch_) return {};
    const int64_t first = program_.op_ptr()[op];
    return {program_.source().data + first, program_.op_ptr()[op + 1] - first};
  }

  // take(source) for each source of an op while it answers true. False: it did not, or there are
  // more ops below than `most`. Each of these sums two rows or more, so that there are fewer than
  // sources.
  template <class Take>
  bool expand(int64_t op, int64_t most, const Take &take) {
    const int32_t *sources = has_scratch_ ? sources_.data() : program_.source().data + first_;
    stack_.clear();
    stack_.push_back(range(op));
    while (!stack_.empty()) {
      Range &top = stack_.back();
      if (top.at == top.end) {
        stack_.pop_back();
        continue;
      }
      const int32_t source = sources[top.at++];
      if (source >= 0) {
        if (!take(source)) return false;
        continue;
      }
      if (--most < 0) return false;
      if (top.at == top.end) stack_.pop_back();
      stack_.push_back(range(first_op_ + ~source));
    }
    return true;
  }

 private:
  Range range(int64_t op) const {
    return {program_.op_ptr()[op] - first_, program_.op_ptr()[op + 1] - first_};
  }

  const Program &program_;
  int64_t first_op_ = 0, first_ = 0;
  bool has_scratch_ = false;
  // A source is a row of x, or, below 0, the complement of an op, counted from the tile's first.
  std::vector<int32_t> writer_;   // what each scratch row holds
  std::vector<int32_t> sources_;  // of all ops of the tile
  std::vector<Range> stack_;
};

// One thread's comparison of rows. It counts sources in an array of all of them, or, where that
// would be larger than the program, sorts.
class Comparison {
 public:
  Comparison(int64_t num_src, bool counts) : count_(counts ? num_src : 0) {}

  // each(take) gives the sources that were found, while take(source) answers true; it answers
  // whether those were all.
  template <class Each>
  bool same(const View<int32_t> &expected, const Each &each) {
    if (count_.empty()) {
      found_.clear();
      const auto most = static_cast<size_t>(expected.size);
      const bool all = each([&](int32_t source) {
        found_.push_back(source);
        return found_.size() <= most;
      });
      if (!all || found_.size() != most) return false;
      sort(found_.data(), found_.data() + found_.size());
      return std::equal(found_.begin(), found_.end(), expected.data);
    }
    for (int64_t i = 0; i < expected.size; ++i) ++count_[expected[i]];
    int64_t left = expected.size;
    int32_t *const count = count_.data();
    const bool all = each([&](int32_t source) {
      --left;
      if (--count[source] >= 0) return true;
      count[source] = 0;  // it was, or it stands in `expected`
      return false;
    });
    if (all && left == 0) return true;
    for (int64_t i = 0; i < expected.size; ++i) count[expected[i]] = 0;
    return false;
  }

 private:
  std::vector<int32_t> count_, found_;
};

class Check {
 public:
  Check(const Program &program, const Csr &graph, Mode mode, bool idempotent, int threads)
      : program_(program),
        graph_(graph),
        mode_(mode),
        idempotent_(idempotent),
        threads_(useful_threads(threads, program.source().size + graph.num_edges())),
        partial_op_(program.num_partials()),
        first_(graph.num_dst) {}

  void run() {
    Counter tiles(program_.num_tiles(), std::max<int64_t>(program_.num_tiles() / 256, 1), threads_);
    Counter hubs(program_.hub_row().size, 1, 1);
    in_parallel_until_stopped(threads_, [&](int thread) {
      Worker worker(*this);
      tiles.share(thread, [&](int64_t first, int64_t last) {
        for (int64_t tile = first; tile < last; ++tile) worker.tile(tile);
      });
    });
    const auto threads = static_cast<int>(std::min<int64_t>(threads_, program_.hub_row().size));
    if (threads > 0)
      in_parallel_until_stopped(threads, [&](int) {
        Worker worker(*this);
        hubs.share(0, [&](int64_t first, int64_t last) {
          for (int64_t hub = first; hub < last; ++hub) worker.hub(hub);
        });
      });
    if (first_ < graph_.num_dst) tell(first_);
  }

 private:
  class Worker {
   public:
    explicit Worker(Check &check)
        : check_(check),
          program_(check.program_),
          expected_(check.program_, check.graph_, check.mode_, check.idempotent_),
          expansion_(check.program_),
          comparison_(check.graph_.num_src, check.counts()) {}

    void tile(int64_t tile) {
      expansion_.start_tile(tile);
      for (int64_t op = program_.tile_ptr()[tile]; op < program_.tile_ptr()[tile + 1]; ++op) {
        expansion_.start_op(op);
        pace_(2 + program_.op_ptr()[op + 1] - program_.op_ptr()[op]);
        const int64_t target = program_.target()[op];
        if (target >= check_.graph_.num_dst) check_.keep_partial(op);
        else if (target >= 0) row(target, op);
      }
    }

    void hub(int64_t hub) {
      compare(program_.hub_row()[hub], {}, [&](int64_t, const auto &take) {
        for (int64_t p = program_.hub_ptr()[hub]; p < program_.hub_ptr()[hub + 1]; ++p) {
          const int64_t op = check_.partial_op_[p];
          for (int64_t k = program_.op_ptr()[op]; k < program_.op_ptr()[op + 1]; ++k)
            if (!take(program_.source()[k])) return false;
        }
        return true;
      });
    }

   private:
    void row(int64_t v, int64_t op) {
      compare(v, expansion_.plain(op),
              [&](int64_t most, const auto &take) { return expansion_.expand(op, most, take); });
    }

    // `plain`: all that is found, if it is known at once.
    template <class Each>
    void compare(int64_t v, const View<int32_t> &plain, const Each &each) {
      if (v >= check_.first_.load(std::memory_order_relaxed)) return;
      const View<int32_t> expected = expected_.row(v);
      pace_(8 * expected.size);
      if (plain.data && plain.size == expected.size && !expected_.lacks_self() &&
          std::equal(plain.data, plain.data + plain.size, expected.data))
        return;
      const auto found = [&](const auto &take) { return each(expected.size, take); };
      if (expected_.lacks_self() || !comparison_.same(expected, found)) check_.differs(v);
    }

    Check &check_;
    const Program &program_;
    Expected expected_;
    Expansion expansion_;
    Comparison comparison_;
    Pace pace_;
  };

  // Whether an array of all sources is no larger than what is compared.
  bool counts() const {
    return graph_.num_src <= 2 * (graph_.num_dst + graph_.num_edges() + 1) / threads_;
  }

  void keep_partial(int64_t op) {
    for (int64_t k = program_.op_ptr()[op]; k < program_.op_ptr()[op + 1]; ++k)
      if (program_.source()[k] < 0)
        refuse("op ", op, " sums scratch rows to a partial sum; expected rows of x");
    partial_op_[program_.target()[op] - graph_.num_dst] = op;
  }

  void differs(int64_t v) {
    int64_t first = first_;
    while (v < first && !first_.compare_exchange_weak(first, v)) {
    }
  }

  // Throws what is to be said of a row that differs.
  [[noreturn]] void tell(int64_t v) {
    Expected rows(program_, graph_, mode_, idempotent_);
    const View<int32_t> row = rows.row(v);
    std::vector<int32_t> expected(row.data, row.data + row.size);
    std::vector<int32_t> found = found_in(v, row.size + 1024);
    if (program_.diagonal() > 0) {  // the row is without what the diagonal adds
      found.push_back(static_cast<int32_t>(v));
      if (!rows.lacks_self()) expected.push_back(static_cast<int32_t>(v));
    }
    sort(expected.data(), expected.data() + expected.size());
    sort(found.data(), found.data() + found.size());
    size_t at = 0;
    while (at < expected.size() && at < found.size() && expected[at] == found[at]) ++at;
    int32_t source = INT32_MAX;
    if (at < expected.size()) source = expected[at];
    if (at < found.size()) source = std::min(source, found[at]);
    const auto in = [source](const std::vector<int32_t> &of) {
      return std::count(of.begin(), of.end(), source);
    };
    refuse("the program differs from the graph at row ", v, ", source ", source, ": expected ",
           in(expected), " edges, found ", in(found));
  }

  // The sources of a row, or so many of them.
  std::vector<int32_t> found_in(int64_t v, int64_t most) {
    std::vector<int32_t> found;
    const auto take = [&](int32_t source) {
      found.push_back(source);
      return static_cast<int64_t>(found.size()) < most;
    };
    for (int64_t hub = 0; hub < program_.hub_row().size; ++hub) {
      if (program_.hub_row()[hub] != v) continue;
      for (int64_t p = program_.hub_ptr()[hub]; p < program_.hub_ptr()[hub + 1]; ++p) {
        const int64_t op = partial_op_[p];
        for (int64_t k = program_.op_ptr()[op]; k < program_.op_ptr()[op + 1]; ++k)
          if (!take(program_.source()[k])) return found;
      }
    }
    Expansion expansion(program_);
    Pace pace;
    for (int64_t tile = 0; tile < program_.num_tiles(); ++tile) {
      const int64_t first = program_.tile_ptr()[tile], last = program_.tile_ptr()[tile + 1];
      const int32_t *targets = program_.target().data;
      pace(1 + last - first);
      if (std::find(targets + first, targets + last, v) == targets + last) continue;
      expansion.start_tile(tile);
      for (int64_t op = first; op < last; ++op) {
        expansion.start_op(op);
        if (targets[op] == v) expansion.expand(op, INT64_MAX, take);
      }
    }
    return found;
  }

  const Program &program_;
  const Csr &graph_;
  const Mode mode_;
  const bool idempotent_;
  const int threads_;
  std::vector<int64_t> partial_op_;  // who writes each partial sum
  std::atomic<int64_t> first_;       // row that differs
};

}  // namespace

void check_program(const Program &program, const Csr &graph, Mode mode, bool idempotent,
                   int threads) {
  if (program.num_src() != graph.num_src)
    refuse("the program reads ", program.num_src(), " sources; expected ", graph.num_src);
  if (program.num_dst() != graph.num_dst)
    refuse("the program writes ", program.num_dst(), " rows; expected ", graph.num_dst);
  if (program.diagonal() < -1 || program.diagonal() > 1)
    refuse("the program's diagonal is ", program.diagonal(), "; expected -1, 0 or 1");
  Check(program, graph, mode, idempotent, threads).run();
}

}  // namespace hag
