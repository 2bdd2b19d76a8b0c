#include "run/concatenate.h"

#include "interrupt.h"
#include "refuse.h"

namespace hag {

ProgramArrays concatenate(const std::vector<const Program *> &programs) {
  int64_t num_src = 0, num_dst = 0, ops = 0, sources = 0;
  for (const Program *part : programs) {
    num_src += part->num_src();
    num_dst += part->num_dst();
    ops += part->num_ops();
    sources += part->source().size;
  }
  if (num_src > INT32_MAX || num_dst > INT32_MAX) refuse("the batch has 2^31 nodes or more");
  ProgramArrays out;
  out.tile_ptr = {0};
  out.op_ptr.reserve(ops + 1);
  out.op_ptr.push_back(0);
  out.source.reserve(sources);
  out.target.reserve(ops);
  out.hub_ptr = {0};
  int32_t first_src = 0, first_dst = 0, first_scratch = 0;
  Pace pace;
  for (const Program *part : programs) {
    const int64_t partials = out.hub_ptr.back();
    const int64_t part_dst = part->num_dst();
    for (int64_t t = 0; t < part->num_tiles(); ++t) {
      const int64_t begin = part->tile_ptr()[t], end = part->tile_ptr()[t + 1];
      const int64_t open = static_cast<int64_t>(out.target.size()) - out.tile_ptr.back();
      if (open > 0 && open + end - begin > kJoinedOps) {
        out.tile_ptr.push_back(static_cast<int64_t>(out.target.size()));
        first_scratch = 0;
      }
      for (int64_t op = begin; op < end; ++op) {
        pace(1 + part->op_ptr()[op + 1] - part->op_ptr()[op]);
        for (int64_t s = part->op_ptr()[op]; s < part->op_ptr()[op + 1]; ++s) {
          const int32_t source = part->source()[s];
          out.source.push_back(source < 0 ? source - first_scratch : source + first_src);
        }
        out.op_ptr.push_back(static_cast<int64_t>(out.source.size()));
        const int32_t target = part->target()[op];
        if (target < 0) out.target.push_back(target - first_scratch);
        else if (target < part_dst) out.target.push_back(target + first_dst);
        else out.target.push_back(static_cast<int32_t>(num_dst + partials + target - part_dst));
      }
      first_scratch += part->tile_scratch()[t];
    }
    for (int64_t h = 0; h < part->hub_row().size; ++h) {
      out.hub_row.push_back(part->hub_row()[h] + first_dst);
      out.hub_ptr.push_back(partials + part->hub_ptr()[h + 1]);
    }
    first_src += static_cast<int32_t>(part->num_src());
    first_dst += static_cast<int32_t>(part_dst);
  }
  if (out.tile_ptr.back() < static_cast<int64_t>(out.target.size()))
    out.tile_ptr.push_back(static_cast<int64_t>(out.target.size()));
  return out;
}

}  // namespace hag
