// What several bindings take: arrays, whose sizes and dtypes are checked, and the prices of a
// search.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "graph.h"
#include "search/tile_search.h"

namespace nb = nanobind;

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IdArray = nb::ndarray<nb::ndim<1>, nb::ro, nb::device::cpu>;

constexpr int64_t kMostNodes = (1ll << 31) - 1;

inline hag::Ids ids(const IdArray &array, const char *name) {
  const bool wide = array.dtype() == nb::dtype<int64_t>();
  if (!wide && array.dtype() != nb::dtype<int32_t>())
    throw std::invalid_argument(std::string(name) + " must be int32 or int64");
  return {array.data(), static_cast<int64_t>(array.shape(0)),
          array.shape(0) ? static_cast<int64_t>(array.stride(0)) : 1, wide};
}

inline void same_length(const hag::Ids &source, const hag::Ids &target) {
  if (source.size != target.size)
    throw std::invalid_argument("there are " + std::to_string(source.size) + " sources and " +
                                std::to_string(target.size) + " targets; expected as many");
}

template <typename T>
std::vector<T> to_vector(const Array<T> &array) {
  return {array.data(), array.data() + array.shape(0)};
}

inline hag::Costs costs(double intermediate, int64_t work_per_edge, double worth_it, double reorder,
                        int64_t pack_rows, int64_t cut_rows) {
  constexpr int64_t kMostRows = (1 << 16) - 1;  // PairMerger counts them in 16 bits
  if (std::min(pack_rows, cut_rows) < 1 || std::max(pack_rows, cut_rows) > kMostRows)
    throw std::invalid_argument("pack_rows is " + std::to_string(pack_rows) + " and cut_rows " +
                                std::to_string(cut_rows) + "; expected 1 to " +
                                std::to_string(kMostRows));
  return {intermediate, work_per_edge, worth_it, reorder, pack_rows, cut_rows};
}
