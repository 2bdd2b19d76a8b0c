// Python bindings of aggregate.cpp: addresses come as integers, so nothing of torch is linked.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind/arrays.h"
#include "bind/bind_call.h"
#include "run/aggregate.h"
#include "run/check_program.h"
#include "run/concatenate.h"
#include "run/instruction_set.h"
#include "run/winners.h"
#include "search/search.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

template <class T>
hag::View<T> view(const char *name, const Array &array) {
  const std::string expected =
      std::string("expected a contiguous 1-D array of int") + std::to_string(sizeof(T) * 8);
  if (array.ndim() != 1)
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.ndim()) +
                                " dimensions, " + expected);
  if (array.dtype() != nb::dtype<T>())
    throw std::invalid_argument(std::string(name) + " has another dtype, " + expected);
  if (array.shape(0) > 1 && array.stride(0) != 1)
    throw std::invalid_argument(std::string(name) + " has stride " +
                                std::to_string(array.stride(0)) + ", " + expected);
  return {static_cast<const T *>(array.data()), static_cast<int64_t>(array.shape(0))};
}

// The program and the arrays it reads, which it keeps alive.
class BoundProgram {
 public:
  BoundProgram(Array tile_ptr, Array op_ptr, Array source, Array target, Array hub_row,
               Array hub_ptr, int64_t num_src, int64_t num_dst, int64_t diagonal, bool is_plain,
               bool is_passing, std::optional<Array> tile_scratch)
      : arrays_{tile_ptr, op_ptr, source, target, hub_row, hub_ptr}, program_(long_call([&] {
          return hag::Program(
              view<int64_t>("tile_ptr", tile_ptr), view<int64_t>("op_ptr", op_ptr),
              view<int32_t>("source", source), view<int32_t>("target", target),
              view<int32_t>("hub_row", hub_row), view<int64_t>("hub_ptr", hub_ptr), num_src,
              num_dst, diagonal, is_plain, is_passing,
              tile_scratch ? view<int32_t>("tile_scratch", *tile_scratch) : hag::View<int32_t>{});
        })) {}

  const hag::Program &program() const { return program_; }

  void run(uintptr_t x, uintptr_t y, int64_t batch, int64_t width, int64_t x_row_stride,
           int64_t x_batch_stride, int64_t x_rows, int64_t y_rows, int dtype, int reduce,
           uintptr_t source_scale, uintptr_t target_scale, int threads) const {
    program_.run({reinterpret_cast<const void *>(x), reinterpret_cast<void *>(y), batch, width,
                  x_row_stride, x_batch_stride, x_rows, y_rows, dtype, reduce,
                  reinterpret_cast<const void *>(source_scale),
                  reinterpret_cast<const void *>(target_scale), threads});
  }

  void winners(uintptr_t x, uintptr_t y, uintptr_t winner, int64_t batch, int64_t width,
               int64_t x_rows, int64_t y_rows, int dtype, bool largest, bool last,
               int threads) const {
    hag::winners(program_, {reinterpret_cast<const void *>(x), reinterpret_cast<void *>(y),
                            reinterpret_cast<int64_t *>(winner), batch, width, x_rows, y_rows,
                            dtype, threads, largest, last});
  }

 private:
  Array arrays_[6];
  hag::Program program_;
};

void masked_sum(uintptr_t v, uintptr_t key_source, uintptr_t key_target, uintptr_t out,
                uintptr_t row_ptr, uintptr_t col, int64_t num_rows, int64_t num_cols, int64_t batch,
                int64_t width, int loops, int dtype, int threads) {
  HagMaskedSum args;
  args.row_ptr = reinterpret_cast<const int64_t *>(row_ptr);
  args.col = reinterpret_cast<const int32_t *>(col);
  args.v = reinterpret_cast<const void *>(v);
  args.key_source = reinterpret_cast<const void *>(key_source);
  args.key_target = reinterpret_cast<const void *>(key_target);
  args.out = reinterpret_cast<void *>(out);
  args.num_cols = num_cols, args.width = width;
  args.loops = loops, args.dtype = dtype;
  hag::masked_sum(args, num_rows, batch, threads);
}

void add_to_winners(uintptr_t grad, uintptr_t winner, uintptr_t out, int64_t batch,
                    int64_t num_winners, int64_t num_rows, int64_t width, int dtype, int threads) {
  hag::add_to_winners(reinterpret_cast<const void *>(grad),
                      reinterpret_cast<const int64_t *>(winner), reinterpret_cast<void *>(out),
                      batch, num_winners, num_rows, width, dtype, threads);
}

}  // namespace

void bind_aggregate(nb::module_ &m) {
  m.def(
      "concatenate",
      [](const std::vector<const BoundProgram *> &parts) {
        std::vector<const hag::Program *> programs;
        for (const BoundProgram *part : parts) {
          if (!part) throw std::invalid_argument("programs holds None; expected Programs");
          programs.push_back(&part->program());
        }
        return to_python(long_call([&] { return hag::concatenate(programs); }));
      },
      "programs"_a);

  m.def(
      "check_program",
      [](const BoundProgram &program, const Array &row_ptr, const Array &col,
         const std::string &self_loops, bool idempotent, int threads) {
        const hag::View<int64_t> starts = view<int64_t>("row_ptr", row_ptr);
        const hag::View<int32_t> sources = view<int32_t>("col", col);
        if (starts.size < 1 || starts[0] != 0 || starts[starts.size - 1] != sources.size)
          throw std::invalid_argument("row_ptr does not run from 0 to the length of col");
        const hag::Csr graph{starts.data, sources.data, starts.size - 1,
                             program.program().num_src()};
        const hag::Mode mode = hag::parse_mode(self_loops);
        long_call([&] { hag::check_program(program.program(), graph, mode, idempotent, threads); });
      },
      "program"_a, "row_ptr"_a, "col"_a, "self_loops"_a, "idempotent"_a, "threads"_a,
      "Raises unless the program is that of a canonical CSR.");

  nb::class_<BoundProgram>(m, "Program", "A validated program of tiles; see Program, in Python.")
      .def(
          nb::init<Array, Array, Array, Array, Array, Array, int64_t, int64_t, int64_t, bool, bool,
                   std::optional<Array>>(),
          "tile_ptr"_a, "op_ptr"_a, "source"_a, "target"_a, "hub_row"_a, "hub_ptr"_a, "num_src"_a,
          "num_dst"_a, "diagonal"_a, "is_plain"_a = false, "is_passing"_a = false,
          "tile_scratch"_a = nb::none(),
          "`is_plain`: the arrays are as plain_program made them, and are not checked again. "
          "`is_passing`: it may be run only once, which is not prepared for. "
          "`tile_scratch`: as batch_programs gave it with the arrays, which are not checked again.")
      .def("run", &BoundProgram::run, "x"_a, "y"_a, "batch"_a, "width"_a, "x_row_stride"_a,
           "x_batch_stride"_a, "x_rows"_a, "y_rows"_a, "dtype"_a, "reduce"_a, "source_scale"_a,
           "target_scale"_a, "threads"_a, nb::call_guard<WithoutGil>(),
           "Runs over raw addresses, without the GIL; the caller vouches for them.")
      .def("winners", &BoundProgram::winners, "x"_a, "y"_a, "winner"_a, "batch"_a, "width"_a,
           "x_rows"_a, "y_rows"_a, "dtype"_a, "largest"_a, "last"_a, "threads"_a,
           nb::call_guard<WithoutGil>(),
           "Max or min, and the source that each value comes from; -1 where a row has none.")
      .def("count_reads",
           [](const BoundProgram &p) {
             const hag::Program &program = p.program();
             return long_call([&] {
               return hag::count_reads(program.tile_ptr().data, program.num_tiles(),
                                       program.op_ptr().data, program.source().data,
                                       program.num_src());
             });
           })
      .def_prop_ro("num_tiles", [](const BoundProgram &p) { return p.program().num_tiles(); })
      .def_prop_ro("num_ops", [](const BoundProgram &p) { return p.program().num_ops(); })
      .def_prop_ro("num_partials", [](const BoundProgram &p) { return p.program().num_partials(); })
      .def_prop_ro("scratch_rows", [](const BoundProgram &p) { return p.program().scratch_rows(); })
      .def_prop_ro("num_src", [](const BoundProgram &p) { return p.program().num_src(); })
      .def_prop_ro("num_dst", [](const BoundProgram &p) { return p.program().num_dst(); })
      .def_prop_ro("diagonal", [](const BoundProgram &p) { return p.program().diagonal(); });

  m.def("masked_sum", &masked_sum, "v"_a, "key_source"_a, "key_target"_a, "out"_a, "row_ptr"_a,
        "col"_a, "num_rows"_a, "num_cols"_a, "batch"_a, "width"_a, "loops"_a, "dtype"_a,
        "threads"_a, nb::call_guard<WithoutGil>(),
        "out_i = sum over j->i of [key_source_j == key_target_i] * v_j; v = 0 stands for ones.");
  m.def("add_to_winners", &add_to_winners, "grad"_a, "winner"_a, "out"_a, "batch"_a,
        "num_winners"_a, "num_rows"_a, "width"_a, "dtype"_a, "threads"_a,
        nb::call_guard<WithoutGil>(), "out[winner[i, f], f] += grad[i, f].");
  m.def(
      "advise_huge_pages",
      [](uintptr_t data, int64_t bytes) {
        hag::advise_huge_pages(reinterpret_cast<void *>(data), bytes);
      },
      "data"_a, "bytes"_a, "Asks for huge pages under an array that is about to be written.");
  m.def("second_cache_bytes", &hag::second_cache_bytes,
        "Of the second-level cache of a core; 0 where the system does not say.");
  m.def("last_cache_bytes", &hag::last_cache_bytes,
        "Of the last-level cache, what a program may count on; 0 where the system does not say.");
  m.def("reducers", &hag::reducers, "Names of the reducers, in the order of their codes.");
  m.def("instruction_set", &hag::instruction_set, "The instruction set in use.");
  m.def("instruction_sets", &hag::instruction_sets, "Those that this machine can run.");
}
