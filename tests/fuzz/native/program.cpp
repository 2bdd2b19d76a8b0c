// The arrays of a program: refused, or run as their slow twin says; and whether they are a graph's.
#include <stdexcept>

#include "expand.h"
#include "run/check_program.h"

namespace {

bool is_accepted(const hag::Program &program, const hag::Csr &graph, hag::Mode mode, bool set) {
  try {
    hag::check_program(program, graph, mode, set, 1);
    return true;
  } catch (const std::invalid_argument &) {
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Input in(data, size);
  const int64_t num_src = in.number(), num_dst = in.number(), diagonal = in.number();
  const hag::ProgramArrays arrays = in.program();
  if (num_dst > 1 << 20) return 0;  // it takes a byte for each row
  try {
    const hag::Program program = over(arrays, num_src, num_dst, diagonal);
    // Whatever graph it is held against: no more than refused.
    int64_t nodes = 0;
    const auto mode = static_cast<hag::Mode>(in.below(3));
    const bool set = in.below(2);
    const hag::CsrArrays other = in.graph(12, mode != hag::Mode::given, &nodes);
    is_accepted(program, over(other, nodes), mode, set);
    if (num_src > 512 || num_dst > 512 || diagonal < -1000 || diagonal > 1000) return 0;
    std::vector<Row> rows = expand(arrays, num_dst);
    if (rows.empty()) return 0;
    holds(program, rows);
    if (diagonal) return 0;
    const hag::CsrArrays matrix = matrix_of(rows);
    const bool is_its = is_accepted(program, over(matrix, num_src), hag::Mode::given, false);
    // Partial sums of scratch rows are none that a search makes.
    HOLDS(is_its || !arrays.hub_row.empty());
    // Another source somewhere: no longer its matrix.
    if (matrix.col.empty() || num_src < 2) return 0;
    const int64_t row = in.below(num_dst);
    if (rows[row].empty()) return 0;
    int32_t &changed = rows[row][in.byte() % rows[row].size()];
    changed = static_cast<int32_t>((changed + 1) % num_src);
    std::sort(rows[row].begin(), rows[row].end());
    const hag::CsrArrays wrong = matrix_of(rows);
    HOLDS(wrong.col == matrix.col ||
          !is_accepted(program, over(wrong, num_src), hag::Mode::given, false));
  } catch (const std::invalid_argument &) {
  }
  return 0;
}
