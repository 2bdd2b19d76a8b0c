// Python bindings of edge weights.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "bind/arrays.h"
#include "bind/bind_call.h"
#include "run/weighted.h"
#include "search/factorise.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

hag::Ids ids(const Array<int64_t> &array) {
  return {array.data(), static_cast<int64_t>(array.shape(0)), 1, true};
}

nb::tuple factorise(const Array<int64_t> &source, const Array<int64_t> &target,
                    const Array<double> &weight, int64_t num_src, int64_t num_dst) {
  if (source.shape(0) != weight.shape(0) || target.shape(0) != weight.shape(0))
    throw std::invalid_argument("there are " + std::to_string(source.shape(0)) + " sources, " +
                                std::to_string(target.shape(0)) + " targets and " +
                                std::to_string(weight.shape(0)) +
                                " weights; expected as many of each");
  if (num_src < 0 || num_dst < 0)
    throw std::invalid_argument("numbers of nodes must not be negative");
  hag::Factors factors = long_call(
      [&] { return hag::factorise(ids(source), ids(target), weight.data(), num_src, num_dst); });
  return nb::make_tuple(to_numpy(std::move(factors.source)), to_numpy(std::move(factors.target)));
}

nb::object edge_slots(const Array<int64_t> &source, const Array<int64_t> &target,
                      const Array<int64_t> &row_ptr, const Array<int32_t> &col, int64_t num_src) {
  const int64_t num_dst = static_cast<int64_t>(row_ptr.shape(0)) - 1;
  if (source.shape(0) != target.shape(0) || num_dst < 0 ||
      row_ptr.data()[num_dst] != static_cast<int64_t>(col.shape(0)))
    throw std::invalid_argument("arrays of different lengths");
  std::vector<int64_t> slots = long_call([&] {
    return hag::edge_slots(ids(source), ids(target),
                           {row_ptr.data(), col.data(), num_dst, num_src});
  });
  return nb::cast(to_numpy(std::move(slots)));
}

const void *input(uintptr_t address) { return reinterpret_cast<const void *>(address); }

void weighted_sum(uintptr_t x, uintptr_t y, uintptr_t weight, uintptr_t loop_weight,
                  uintptr_t row_ptr, uintptr_t col, uintptr_t source_scale, uintptr_t target_scale,
                  int64_t num_rows, int64_t num_loops, int64_t batch, int64_t width,
                  int64_t x_row_stride, int64_t x_batch_stride, bool skip_loops, int dtype,
                  int threads) {
  HagWeightedSum args = {};
  args.row_ptr = reinterpret_cast<const int64_t *>(row_ptr);
  args.col = reinterpret_cast<const int32_t *>(col);
  args.weight = input(weight), args.loop_weight = input(loop_weight);
  args.source_scale = input(source_scale), args.target_scale = input(target_scale);
  args.x = input(x), args.y = reinterpret_cast<void *>(y);
  args.num_loops = num_loops, args.width = width, args.x_row_stride = x_row_stride;
  args.skip_loops = skip_loops, args.dtype = dtype;
  hag::weighted_sum(args, num_rows, batch, x_batch_stride, threads);
}

void edge_dot(uintptr_t a, uintptr_t b, uintptr_t out, uintptr_t row_ptr, uintptr_t col,
              uintptr_t source_scale, uintptr_t target_scale, int64_t num_rows, int64_t num_cols,
              int64_t num_loops, int64_t batch, int64_t width, bool skip_loops, int dtype,
              int threads) {
  HagEdgeDot args = {};
  args.row_ptr = reinterpret_cast<const int64_t *>(row_ptr);
  args.col = reinterpret_cast<const int32_t *>(col);
  args.source_scale = input(source_scale), args.target_scale = input(target_scale);
  args.a = input(a), args.b = input(b), args.out = reinterpret_cast<void *>(out);
  args.batch = batch, args.width = width;
  args.a_batch_stride = num_cols * width, args.b_batch_stride = num_rows * width;
  args.skip_loops = skip_loops, args.dtype = dtype;
  hag::edge_dot(args, num_rows, num_loops, threads);
}

}  // namespace

void bind_weighted(nb::module_ &m) {
  m.def("factorise", &factorise, "source"_a, "target"_a, "weight"_a, "num_src"_a, "num_dst"_a,
        "Factors that reproduce the weights along a spanning forest; the caller compares.");
  m.def("edge_slots", &edge_slots, "source"_a, "target"_a, "row_ptr"_a, "col"_a, "num_src"_a,
        "The slot of each edge in a CSR of the same graph; duplicates keep their order.");
  m.def("weighted_sum", &weighted_sum, "x"_a, "y"_a, "weight"_a, "loop_weight"_a, "row_ptr"_a,
        "col"_a, "source_scale"_a, "target_scale"_a, "num_rows"_a, "num_loops"_a, "batch"_a,
        "width"_a, "x_row_stride"_a, "x_batch_stride"_a, "skip_loops"_a, "dtype"_a, "threads"_a,
        nb::call_guard<WithoutGil>(),
        "y_i = t_i * (sum over j->i of w s_j x_j, + loop_i s_i x_i), over raw addresses.");
  m.def("edge_dot", &edge_dot, "a"_a, "b"_a, "out"_a, "row_ptr"_a, "col"_a, "source_scale"_a,
        "target_scale"_a, "num_rows"_a, "num_cols"_a, "num_loops"_a, "batch"_a, "width"_a,
        "skip_loops"_a, "dtype"_a, "threads"_a, nb::call_guard<WithoutGil>(),
        "s_j t_i <a_j, b_i> of each edge j->i, then of each loop, over raw addresses.");
}
