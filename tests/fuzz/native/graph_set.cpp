// What a file of many graphs holds: refused, or batches of them are those of the same graphs anew.
#include <stdexcept>

#include "batch/graph_set.h"
#include "expand.h"
#include "run/check_program.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Input in(data, size);
  std::vector<int64_t> nodes(in.below(6));
  for (int64_t &count : nodes) {
    count = in.number();
    if (count < 0 || count > 1 << 12) return 0;  // the bindings check; and rows are made of it
  }
  std::vector<int64_t> row_ptr = in.array<int64_t>();
  std::vector<int32_t> col = in.array<int32_t>();
  try {
    hag::GraphSet set(nodes, row_ptr, col);
    for (int64_t g = 0; g < set.size(); ++g)
      hag::check_csr(set.graph(g), set.edge_ptr()[g + 1] - set.edge_ptr()[g]);
    HOLDS(set.transposed()->size() == set.size());
    const auto mode = static_cast<hag::Mode>(in.below(3));
    const hag::Matrix matrix{mode, in.below(2) == 1};
    hag::GraphSet other(nodes, row_ptr, col);
    if (in.below(2)) {
      // Programs from the file: each must be some program of so many nodes.
      hag::Trees trees(set.size());
      for (int64_t g = 0; g < set.size(); ++g)
        if (in.below(2))
          trees[g] = std::make_shared<const hag::Tree>(in.program(), nodes[g], hag::Candidates{});
      other.put(matrix, trees);
    }
    const hag::Costs costs{0.5, in.byte(), 0.9, 0.9, 1 + in.byte(), 1 + in.byte()};
    set.search(matrix, in.below(2) ? &costs : nullptr, 1);
    std::vector<hag::Place> places;
    for (int64_t count = set.size() ? in.below(8) : 0; count > 0; --count)
      places.push_back({&set, in.below(set.size())});
    const auto [csr, facts] = hag::batch_graphs(places);
    const int64_t rows = static_cast<int64_t>(csr.row_ptr.size()) - 1;
    const auto [joint, shares] = hag::batch_programs(places, matrix);
    const hag::Program program = over(joint.arrays, rows, rows, 0);
    hag::check_program(program, over(csr, rows), matrix.first, matrix.second, 1);
    const auto gathered = hag::gather(places);
    HOLDS(gathered->size() == static_cast<int64_t>(places.size()));
    if (!other.trees(matrix)) return 0;
    for (hag::Place &place : places) place.set = &other;
    const auto from_file = hag::batch_programs(places, matrix).first;
    over(from_file.arrays, rows, rows, 0);  // every index is checked
  } catch (const std::invalid_argument &) {
  }
  return 0;
}
