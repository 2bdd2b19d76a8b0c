// Python bindings of graphs and search. Sizes and types are checked here; contents by the code
// behind.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "bind/arguments.h"
#include "bind/arrays.h"
#include "bind/bind_call.h"
#include "checksum.h"
#include "graph.h"
#include "search/search.h"

namespace nb = nanobind;

namespace {

hag::Csr csr(const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src) {
  if (row_ptr.shape(0) < 1) throw std::invalid_argument("row_ptr is empty; expected num_dst + 1");
  if (num_src < 0 || num_src > kMostNodes)
    throw std::invalid_argument("num_src is " + std::to_string(num_src) +
                                "; expected 0 to 2^31 - 1");
  const int64_t num_dst = static_cast<int64_t>(row_ptr.shape(0)) - 1;
  if (row_ptr.data()[0] != 0 || row_ptr.data()[num_dst] != static_cast<int64_t>(col.shape(0)))
    throw std::invalid_argument("row_ptr does not run from 0 to the length of col");
  return {row_ptr.data(), col.data(), num_dst, num_src};
}

}  // namespace

void bind_graph(nb::module_ &m) {
  using namespace nb::literals;

  m.attr("PLAIN_TILE_ROWS") = hag::kPlainTileRows;
  m.attr("PLAIN_TILE_WORK") = hag::kPlainTileWork;
  m.def(
      "build_csr",
      [](const IdArray &source, const IdArray &target, int64_t num_src, int64_t num_dst, bool both,
         int threads, int64_t loops) {
        const hag::Ids s = ids(source, "source"), t = ids(target, "target");
        same_length(s, t);
        if (num_src < 0 || num_src > kMostNodes || num_dst < 0 || num_dst > kMostNodes)
          throw std::invalid_argument("numbers of nodes must be 0 to 2^31 - 1");
        if (loops < 0 || loops > std::min(num_src, num_dst))
          throw std::invalid_argument("loops is " + std::to_string(loops) +
                                      "; expected 0 to the smaller number of nodes");
        hag::Directions out = long_call(
            [&] { return hag::build_directions(s, t, num_src, num_dst, both, threads, loops); });
        nb::list arrays;
        for (hag::CsrArrays *of : {&out.forward, &out.reverse}) {
          if (of == &out.reverse && !both) break;
          arrays.append(to_numpy(std::move(of->row_ptr)));
          arrays.append(to_numpy(std::move(of->col)));
        }
        return arrays;
      },
      "source"_a, "target"_a, "num_src"_a, "num_dst"_a, "both"_a = false, "threads"_a = 1,
      "loops"_a = 0,
      "CSR by target; `both`: then that by source, too; `loops`: of one on each of so many nodes "
      "in "
      "place of those there are.");
  m.def(
      "transpose_csr",
      [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src, int threads) {
        const hag::Csr graph = csr(row_ptr, col, num_src);
        hag::CsrArrays out = long_call([&] { return hag::transpose_csr(graph, threads); });
        return nb::make_tuple(to_numpy(std::move(out.row_ptr)), to_numpy(std::move(out.col)));
      },
      "row_ptr"_a, "col"_a, "num_src"_a, "threads"_a = 1);
  m.def(
      "reversed_order",
      [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src, int threads) {
        const hag::Csr graph = csr(row_ptr, col, num_src);
        if (graph.num_edges() > INT32_MAX) throw std::invalid_argument("2^31 edges or more");
        return to_numpy(long_call([&] { return hag::reversed_order(graph, threads); }));
      },
      "row_ptr"_a, "col"_a, "num_src"_a, "threads"_a = 1,
      "The numbers of the edges in the order of the reverse.");
  m.def(
      "edge_hash",
      [](const IdArray &source, const IdArray &target) {
        const hag::Ids s = ids(source, "source"), t = ids(target, "target");
        same_length(s, t);
        return long_call([&] { return hag::edge_hash(s, t); });
      },
      "source"_a, "target"_a);
  m.def("csr_hash", [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src) {
    const hag::Csr graph = csr(row_ptr, col, num_src);
    return long_call([&] { return hag::csr_hash(graph); });
  });
  m.def(
      "is_in_order",
      [](const IdArray &source, const IdArray &target, const Array<int64_t> &row_ptr,
         const Array<int32_t> &col) {
        const hag::Ids s = ids(source, "source"), t = ids(target, "target");
        same_length(s, t);
        const hag::Csr graph = csr(row_ptr, col, 0);
        return long_call([&] { return hag::is_in_order(s, t, graph); });
      },
      "source"_a, "target"_a, "row_ptr"_a, "col"_a,
      "Whether these are the edges of a graph, by target, then by source.");
  m.def(
      "write_edges",
      [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, uintptr_t source,
         uintptr_t target) {
        const hag::Csr graph = csr(row_ptr, col, 0);
        long_call([&] {
          hag::write_edges(graph, reinterpret_cast<int64_t *>(source),
                           reinterpret_cast<int64_t *>(target));
        });
      },
      "row_ptr"_a, "col"_a, "source"_a, "target"_a,
      "Writes the ends of its edges in that order, int64 [E] each, to two addresses.");
  m.def(
      "add_to_stretches",
      [](uintptr_t data, int64_t rows, bool wide, const Array<int64_t> &ends,
         const Array<int64_t> &added) {
        const int64_t count = static_cast<int64_t>(added.shape(0));
        if (static_cast<int64_t>(ends.shape(0)) != count + 1 || ends.data()[0] != 0 ||
            !std::is_sorted(ends.data(), ends.data() + count + 1))
          throw std::invalid_argument("ends does not run from 0, stretch by stretch");
        long_call([&] {
          const auto add = [&](auto *first) {
            hag::add_to_stretches(first, rows, ends.data(), added.data(), count);
          };
          wide ? add(reinterpret_cast<int64_t *>(data)) : add(reinterpret_cast<int32_t *>(data));
        });
      },
      "data"_a, "rows"_a, "wide"_a, "ends"_a, "added"_a,
      "Adds a number to each stretch of each row, int64 or int32 [rows, ends[-1]], at an address.");
  m.def("is_symmetric", [](const Array<int64_t> &row_ptr, const Array<int32_t> &col) {
    const hag::Csr graph = csr(row_ptr, col, static_cast<int64_t>(row_ptr.shape(0)) - 1);
    return long_call([&] { return hag::is_symmetric(graph); });
  });
  m.def("has_duplicates", [](const Array<int64_t> &row_ptr, const Array<int32_t> &col) {
    const hag::Csr graph = csr(row_ptr, col, 0);
    return long_call([&] { return hag::has_duplicates(graph); });
  });
  m.def("count_self_loops",
        [](const Array<int64_t> &row_ptr, const Array<int32_t> &col) -> nb::object {
          const hag::Csr graph = csr(row_ptr, col, 0);
          std::vector<int64_t> count = long_call([&] { return hag::count_self_loops(graph); });
          if (count.empty()) return nb::none();
          return nb::cast(to_numpy(std::move(count)));
        });
  m.def("check_csr", [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src) {
    const hag::Csr graph = csr(row_ptr, col, num_src);
    long_call([&] { hag::check_csr(graph, static_cast<int64_t>(col.shape(0))); });
  });

  m.def(
      "plain_program",
      [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src,
         const std::string &self_loops, bool idempotent,
         const std::optional<Array<int32_t>> &rows) {
        const hag::Csr graph = csr(row_ptr, col, num_src);
        const hag::Mode mode = hag::parse_mode(self_loops);
        const int32_t *order = rows ? rows->data() : nullptr;
        const int64_t count = rows ? static_cast<int64_t>(rows->shape(0)) : graph.num_dst;
        return to_python(
            long_call([&] { return hag::plain_program(graph, mode, idempotent, order, count); }));
      },
      "row_ptr"_a, "col"_a, "num_src"_a, "self_loops"_a, "idempotent"_a, "rows"_a = nb::none());
  m.def(
      "search_program",
      [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src,
         const std::string &self_loops, bool idempotent, bool leave_one_out, double intermediate,
         int64_t work_per_edge, double worth_it, double reorder, int64_t pack_rows,
         int64_t cut_rows, int threads, const nb::object &progress) {
        const hag::Csr graph = csr(row_ptr, col, num_src);
        const hag::Mode mode = hag::parse_mode(self_loops);
        const hag::Costs prices =
            costs(intermediate, work_per_edge, worth_it, reorder, pack_rows, cut_rows);
        const auto search = [&] {
          return hag::search_program(graph, mode, idempotent, leave_one_out, prices, threads);
        };
        hag::Found found = long_call(search, progress);
        nb::object program = nb::none(), order = nb::none();
        if (found.program) program = to_python(std::move(*found.program));
        if (!found.order.empty()) order = nb::cast(to_numpy(std::move(found.order)));
        return nb::make_tuple(program, order);
      },
      "row_ptr"_a, "col"_a, "num_src"_a, "self_loops"_a, "idempotent"_a, "leave_one_out"_a,
      "intermediate"_a, "work_per_edge"_a, "worth_it"_a, "reorder"_a, "pack_rows"_a, "cut_rows"_a,
      "threads"_a, "progress"_a = nb::none());
  m.def(
      "greedy_program",
      [](const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src,
         const std::string &self_loops, bool idempotent, int64_t capacity, int threads,
         const nb::object &progress) {
        const hag::Csr graph = csr(row_ptr, col, num_src);
        const hag::Mode mode = hag::parse_mode(self_loops);
        const auto search = [&] {
          return hag::greedy_program(graph, mode, idempotent, capacity, threads);
        };
        return to_python(long_call(search, progress));
      },
      "row_ptr"_a, "col"_a, "num_src"_a, "self_loops"_a, "idempotent"_a, "capacity"_a, "threads"_a,
      "progress"_a = nb::none());
  m.def(
      "checksum",
      [](uintptr_t data, int64_t rows, int64_t row_bytes, int64_t row_stride, int threads) {
        const auto *first = reinterpret_cast<const void *>(data);
        if (rows * row_bytes < 65536)  // done before the lock is given back
          return hag::checksum(first, rows, row_bytes, row_stride, 1);
        const WithoutGil without_gil;
        return hag::checksum(first, rows, row_bytes, row_stride, threads);
      },
      "data"_a, "rows"_a, "row_bytes"_a, "row_stride"_a, "threads"_a);
  m.def(
      "rows_alike",
      [](uintptr_t data, const Array<int32_t> &first, int64_t row_bytes, int64_t row_stride,
         int64_t step, int threads) {
        const auto rows = static_cast<int64_t>(first.shape(0));
        if (step < 1) throw std::invalid_argument("step is below 1");
        for (int64_t i = 0; i < rows; ++i) {
          if (first.data()[i] < 0 || first.data()[i] >= rows)
            throw std::invalid_argument("first holds " + std::to_string(first.data()[i]) +
                                        "; expected 0 to " + std::to_string(rows - 1));
        }
        const WithoutGil without_gil;
        return hag::rows_alike(reinterpret_cast<const void *>(data), first.data(), rows, row_bytes,
                               row_stride, step, threads);
      },
      "data"_a, "first"_a, "row_bytes"_a, "row_stride"_a, "step"_a, "threads"_a);
}
