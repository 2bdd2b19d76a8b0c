#include "run/concatenate.h"

#include <algorithm>

#include "interrupt.h"
#include "refuse.h"

namespace hag {

namespace {

class Joined {
 public:
  Joined(int64_t num_dst, int64_t ops, int64_t sources) : num_dst_(num_dst) {
    out_.tile_ptr = {0};
    out_.op_ptr.reserve(ops + 1);
    out_.op_ptr.push_back(0);
    out_.source.reserve(sources);
    out_.target.reserve(ops);
    out_.hub_ptr = {0};
  }

  void add(const Program &part);
  void add_plain(const Csr &graph, Mode mode, bool idempotent);
  Joint finish() {
    if (open() > 0) end_tile();
    return {std::move(out_), std::move(tile_scratch_)};
  }

 private:
  int64_t open() const { return static_cast<int64_t>(out_.target.size()) - out_.tile_ptr.back(); }
  void end_tile() {
    out_.tile_ptr.push_back(static_cast<int64_t>(out_.target.size()));
    tile_scratch_.push_back(first_scratch_);
    first_scratch_ = 0;
  }
  void make_room(int64_t ops) {
    if (open() > 0 && open() + ops > kJoinedOps) end_tile();
  }
  void end_op(int32_t target) {
    out_.op_ptr.push_back(static_cast<int64_t>(out_.source.size()));
    out_.target.push_back(target);
  }

  const int64_t num_dst_;  // of all
  ProgramArrays out_;
  std::vector<int32_t> tile_scratch_;
  int32_t first_src_ = 0, first_dst_ = 0, first_scratch_ = 0;
  Pace pace_;
};

void Joined::add(const Program &part) {
  const int64_t partials = out_.hub_ptr.back(), part_dst = part.num_dst();
  for (int64_t t = 0; t < part.num_tiles(); ++t) {
    const int64_t begin = part.tile_ptr()[t], end = part.tile_ptr()[t + 1];
    make_room(end - begin);
    for (int64_t op = begin; op < end; ++op) {
      pace_(1 + part.op_ptr()[op + 1] - part.op_ptr()[op]);
      for (int64_t s = part.op_ptr()[op]; s < part.op_ptr()[op + 1]; ++s) {
        const int32_t source = part.source()[s];
        out_.source.push_back(source < 0 ? source - first_scratch_ : source + first_src_);
      }
      const int32_t target = part.target()[op];
      if (target < 0) end_op(target - first_scratch_);
      else if (target < part_dst) end_op(target + first_dst_);
      else end_op(static_cast<int32_t>(num_dst_ + partials + target - part_dst));
    }
    first_scratch_ += part.tile_scratch()[t];
  }
  for (int64_t h = 0; h < part.hub_row().size; ++h) {
    out_.hub_row.push_back(part.hub_row()[h] + first_dst_);
    out_.hub_ptr.push_back(partials + part.hub_ptr()[h + 1]);
  }
  first_src_ += static_cast<int32_t>(part.num_src());
  first_dst_ += static_cast<int32_t>(part_dst);
}

void Joined::add_plain(const Csr &graph, Mode mode, bool idempotent) {
  make_room(std::min(graph.num_dst, kJoinedOps));
  for (int64_t v = 0; v < graph.num_dst; ++v) {
    make_room(1);
    const size_t begin = out_.source.size();
    pace_(1 + graph.row_ptr[v + 1] - graph.row_ptr[v]);
    append_row(graph, v, mode, idempotent, out_.source);
    for (size_t s = begin; s < out_.source.size(); ++s) out_.source[s] += first_src_;
    end_op(static_cast<int32_t>(v) + first_dst_);
  }
  first_src_ += static_cast<int32_t>(graph.num_src);
  first_dst_ += static_cast<int32_t>(graph.num_dst);
}

}  // namespace

Joint concatenate(const std::vector<Part> &parts, Mode mode, bool idempotent) {
  int64_t num_src = 0, num_dst = 0, ops = 0, sources = 0;
  for (const Part &part : parts) {
    if (part.program) {
      num_src += part.program->num_src();
      num_dst += part.program->num_dst();
      ops += part.program->num_ops();
      sources += part.program->source().size;
    } else {
      num_src += part.graph.num_src;
      num_dst += part.graph.num_dst;
      ops += part.graph.num_dst;
      sources += part.graph.num_edges() + part.graph.num_dst;
    }
  }
  if (num_src > INT32_MAX || num_dst > INT32_MAX) refuse("the batch has 2^31 nodes or more");
  Joined joined(num_dst, ops, sources);
  for (const Part &part : parts) {
    if (part.program) joined.add(*part.program);
    else joined.add_plain(part.graph, mode, idempotent);
  }
  return joined.finish();
}

ProgramArrays concatenate(const std::vector<const Program *> &programs) {
  std::vector<Part> parts;
  for (const Program *program : programs) parts.push_back({program, {}});
  return concatenate(parts, Mode::given, false).arrays;
}

}  // namespace hag
