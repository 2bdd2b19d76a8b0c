// Python bindings of edge weights.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "arrays.h"
#include "factorise.h"

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
  hag::Factors factors;
  {
    nb::gil_scoped_release release;
    factors = hag::factorise(ids(source), ids(target), weight.data(), num_src, num_dst);
  }
  return nb::make_tuple(to_numpy(std::move(factors.source)), to_numpy(std::move(factors.target)));
}

}  // namespace

void bind_weighted(nb::module_ &m) {
  m.def("factorise", &factorise, "source"_a, "target"_a, "weight"_a, "num_src"_a, "num_dst"_a,
        "Factors that reproduce the weights along a spanning forest; the caller compares.");
}
