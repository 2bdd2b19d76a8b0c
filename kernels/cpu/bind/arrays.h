// Handing arrays over to Python without a copy.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <utility>
#include <vector>

#include "program_arrays.h"

namespace nb = nanobind;

template <typename T>
inline nb::ndarray<nb::numpy, T, nb::ndim<1>> to_numpy(std::vector<T> &&values) {
  auto *kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void *p) noexcept { delete static_cast<std::vector<T> *>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(kept->data(), {kept->size()}, owner);
}

inline nb::tuple to_python(hag::ProgramArrays &&program) {
  return nb::make_tuple(to_numpy(std::move(program.tile_ptr)), to_numpy(std::move(program.op_ptr)),
                        to_numpy(std::move(program.source)), to_numpy(std::move(program.target)),
                        to_numpy(std::move(program.hub_row)), to_numpy(std::move(program.hub_ptr)));
}
