// Programs of graphs side by side: that of the graph of all, whatever each one's program is.
#include <deque>
#include <stdexcept>

#include "expand.h"
#include "run/check_program.h"
#include "run/concatenate.h"
#include "search/search.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Input in(data, size);
  const auto mode = static_cast<hag::Mode>(in.below(3));
  const bool set = in.below(2), square = mode != hag::Mode::given || in.below(2);
  std::deque<hag::CsrArrays> graphs;
  std::deque<hag::ProgramArrays> arrays;
  std::deque<hag::Program> programs;
  std::vector<hag::Part> parts;
  std::vector<const hag::Program *> searched;
  hag::CsrArrays all{{0}, {}};
  int64_t sources = 0;
  for (int64_t count = in.below(6); count > 0; --count) {
    int64_t num_src = 0;
    graphs.push_back(in.graph(20, square, &num_src));
    const hag::Csr graph = over(graphs.back(), num_src);
    for (int64_t v = 0; v < graph.num_dst; ++v) {
      for (int64_t e = graph.row_ptr[v]; e < graph.row_ptr[v + 1]; ++e)
        all.col.push_back(static_cast<int32_t>(graph.col[e] + sources));
      all.row_ptr.push_back(static_cast<int64_t>(all.col.size()));
    }
    sources += num_src;
    const int64_t kind = in.below(3);
    arrays.push_back(kind == 2 ? hag::greedy_program(graph, mode, set, in.byte(), 1)
                               : hag::plain_program(graph, mode, set, nullptr, graph.num_dst));
    const hag::ProgramArrays &a = arrays.back();
    programs.emplace_back(view(a.tile_ptr), view(a.op_ptr), view(a.source), view(a.target),
                          view(a.hub_row), view(a.hub_ptr), num_src, graph.num_dst, 0);
    searched.push_back(&programs.back());
    parts.push_back({kind == 0 ? nullptr : &programs.back(), graph});
  }
  const hag::Csr whole = over(all, sources);
  if (!parts.empty()) {
    const hag::ProgramArrays joined = hag::concatenate(searched);
    hag::check_program(over(joined, sources, whole.num_dst, 0), whole, mode, set, 1);
  }
  if (!square) return 0;  // a loader's batches are
  const hag::Joint joint = hag::concatenate(parts, mode, set);
  const hag::Program program = over(joint.arrays, sources, whole.num_dst, 0);
  hag::check_program(program, whole, mode, set, 1);
  for (int64_t tile = 0; tile < program.num_tiles(); ++tile)
    HOLDS(joint.tile_scratch[tile] >= program.tile_scratch()[tile]);
  const std::vector<Row> rows = expand(joint.arrays, whole.num_dst);
  if (whole.num_dst == 0 || !rows.empty()) holds(program, rows);
  return 0;
}
