// Arrays of a graph: refused, or every program that a search makes of them is the graph's.
#include <stdexcept>

#include "expand.h"
#include "run/check_program.h"
#include "search/search.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Input in(data, size);
  const int64_t num_src = in.number();
  hag::CsrArrays arrays{in.array<int64_t>(), in.array<int32_t>()};
  // What the bindings check: that there is a last element, and where it ends.
  if (arrays.row_ptr.empty() || num_src < 0 || num_src > INT32_MAX) return 0;
  if (arrays.row_ptr[0] != 0 || arrays.row_ptr.back() != static_cast<int64_t>(arrays.col.size()))
    return 0;
  const hag::Csr graph = over(arrays, num_src);
  try {
    hag::check_csr(graph, static_cast<int64_t>(arrays.col.size()));
  } catch (const std::invalid_argument &) {
    return 0;
  }
  for (int64_t v = 0; v < graph.num_dst; ++v)
    for (int64_t e = graph.row_ptr[v]; e < graph.row_ptr[v + 1]; ++e) {
      HOLDS(graph.col[e] >= 0 && graph.col[e] < num_src);
      HOLDS(e == graph.row_ptr[v] || graph.col[e - 1] <= graph.col[e]);
    }
  if (num_src > 1 << 12) return 0;  // their reverse has so many rows
  const hag::CsrArrays reverse = hag::transpose_csr(graph, 1);
  hag::check_csr(over(reverse, graph.num_dst), graph.num_edges());
  const hag::CsrArrays again = hag::transpose_csr(over(reverse, graph.num_dst), 1);
  HOLDS(again.row_ptr == arrays.row_ptr && again.col == arrays.col);
  std::vector<int64_t> source(arrays.col.size()), target(arrays.col.size());
  hag::write_edges(graph, source.data(), target.data());
  const hag::Ids s{source.data(), graph.num_edges(), 1, true};
  const hag::Ids t{target.data(), graph.num_edges(), 1, true};
  HOLDS(hag::is_in_order(s, t, graph));
  HOLDS(hag::edge_hash(s, t) == hag::csr_hash(graph));
  const bool is_square = graph.num_dst == num_src;
  if (is_square) hag::is_symmetric(graph);
  hag::has_duplicates(graph);

  const auto mode = is_square ? static_cast<hag::Mode>(in.below(3)) : hag::Mode::given;
  const bool set = in.below(2);
  const hag::Costs costs{
      0.25 * static_cast<double>(in.byte()), in.byte(),     0.01 * static_cast<double>(in.byte()),
      0.01 * static_cast<double>(in.byte()), 1 + in.byte(), 1 + in.byte()};
  std::vector<hag::ProgramArrays> made;
  made.push_back(hag::plain_program(graph, mode, set, nullptr, graph.num_dst));
  made.push_back(hag::greedy_program(graph, mode, set, in.byte(), 1));
  hag::Found found = hag::search_program(graph, mode, set, false, costs, 1);
  if (found.program) made.push_back(std::move(*found.program));
  for (const hag::ProgramArrays &each : made) {
    const hag::Program program = over(each, num_src, graph.num_dst, 0);
    hag::check_program(program, graph, mode, set, 1);
    const std::vector<Row> rows = expand(each, graph.num_dst);
    if (graph.num_dst == 0 || !rows.empty()) holds(program, rows);
  }
  return 0;
}
