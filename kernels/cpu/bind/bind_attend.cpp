// Python bindings of attention.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>

#include <array>
#include <utility>

#include "attend/attend.h"
#include "bind/bind_call.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

typedef std::pair<uintptr_t, int64_t> Given;  // an address and how many numbers are there
typedef std::array<Given, 9> Tensors;
typedef std::array<uintptr_t, 4> Graph;  // row_ptr, col, place, order
typedef std::array<int64_t, 7> Sizes;    // rows, columns, edges, heads, and the three widths

hag::Numbers numbers(const Given &given) {
  return {given.second == 0 ? nullptr : reinterpret_cast<void *>(given.first), given.second};
}

hag::AttendTensors tensors(const Tensors &t) {
  return {numbers(t[0]), numbers(t[1]), numbers(t[2]), numbers(t[3]), numbers(t[4]),
          numbers(t[5]), numbers(t[6]), numbers(t[7]), numbers(t[8])};
}

HagAttend shape(const Graph &graph, const Sizes &sizes, int dtype) {
  HagAttend a = {};
  a.row_ptr = reinterpret_cast<const int64_t *>(graph[0]);
  a.col = reinterpret_cast<const int32_t *>(graph[1]);
  a.place = reinterpret_cast<const int32_t *>(graph[2]);
  a.order = reinterpret_cast<const int64_t *>(graph[3]);
  a.num_rows = sizes[0], a.num_cols = sizes[1], a.num_edges = sizes[2], a.heads = sizes[3];
  a.width = sizes[4], a.key_width = sizes[5], a.edge_width = sizes[6], a.dtype = dtype;
  return a;
}

HagAttend form(HagAttend a, int score, int normalise, double slope) {
  a.score = score, a.normalise = normalise, a.slope = slope;
  return a;
}

void attend(const Graph &graph, const Sizes &sizes, const Tensors &given, const Given &y,
            const Given &kept, int score, int normalise, double slope, int dtype, int threads) {
  const WithoutGil released;
  hag::attend(form(shape(graph, sizes, dtype), score, normalise, slope), tensors(given), numbers(y),
              numbers(kept), threads);
}

void attend_backward(const Graph &graph, const Graph &reverse, const Sizes &sizes,
                     const Tensors &given, const Given &kept, const Given &grad_value,
                     const Given &grad_edges, const Given &inner, const Tensors &out, int score,
                     int normalise, double slope, int dtype, int threads) {
  const WithoutGil released;
  const hag::Reverse turned = {reinterpret_cast<const int64_t *>(reverse[0]),
                               reinterpret_cast<const int32_t *>(reverse[1]),
                               reinterpret_cast<const int32_t *>(reverse[2])};
  const hag::AttendGrads grads = {numbers(grad_value), numbers(grad_edges), numbers(inner)};
  hag::attend_backward(form(shape(graph, sizes, dtype), score, normalise, slope), turned,
                       tensors(given), numbers(kept), grads, tensors(out), threads);
}

void head_dot(const Graph &graph, const Sizes &sizes, const Given &a, const Given &b,
              const Given &out, int dtype, int threads) {
  const WithoutGil released;
  hag::head_dot(shape(graph, sizes, dtype), numbers(a), numbers(b), numbers(out), threads);
}

}  // namespace

void bind_attend(nb::module_ &m) {
  m.def("attend", &attend, "graph"_a, "sizes"_a, "tensors"_a, "y"_a, "kept"_a, "score"_a,
        "normalise"_a, "slope"_a, "dtype"_a, "threads"_a,
        "y_i = sum over j->i of p value_j of each head, over raw addresses.");
  m.def("attend_backward", &attend_backward, "graph"_a, "reverse"_a, "sizes"_a, "tensors"_a,
        "kept"_a, "grad_value"_a, "grad_edges"_a, "inner"_a, "out"_a, "score"_a, "normalise"_a,
        "slope"_a, "dtype"_a, "threads"_a, "The gradients by those tensors that `out` has.");
  m.def("head_dot", &head_dot, "graph"_a, "sizes"_a, "a"_a, "b"_a, "out"_a, "dtype"_a, "threads"_a,
        "<a_j, b_i> of each edge j->i and head, over raw addresses.");
}
