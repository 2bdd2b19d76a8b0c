// Python bindings of graph_set.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "batch/graph_set.h"
#include "bind/arguments.h"
#include "bind/arrays.h"
#include "bind/bind_call.h"

namespace nb = nanobind;

namespace {

using hag::GraphSet;

hag::Matrix matrix(const std::string &self_loops, bool idempotent) {
  return {hag::parse_mode(self_loops), idempotent};
}

std::vector<int64_t> counts_of_nodes(const Array<int64_t> &array) {
  std::vector<int64_t> out = to_vector(array);
  for (const int64_t nodes : out)
    if (nodes < 0 || nodes > kMostNodes)
      throw std::invalid_argument("a graph has " + std::to_string(nodes) +
                                  " nodes; expected 0 to 2^31 - 1");
  return out;
}

std::vector<int64_t> checked_offsets(const Array<int64_t> &array, int64_t graphs, int64_t end) {
  std::vector<int64_t> out = to_vector(array);
  if (static_cast<int64_t>(out.size()) != graphs + 1 || out.front() != 0 || out.back() != end ||
      !std::is_sorted(out.begin(), out.end()))
    throw std::invalid_argument("edge_ptr does not run from 0 to the number of edges, " +
                                std::to_string(end) + ", graph by graph");
  return out;
}

std::vector<hag::Place> places(const std::vector<const GraphSet *> &sets,
                               const std::vector<int64_t> &graphs) {
  if (sets.size() != 1 && sets.size() != graphs.size())
    throw std::invalid_argument("there are " + std::to_string(sets.size()) + " sets for " +
                                std::to_string(graphs.size()) + " graphs; expected one or as many");
  std::vector<hag::Place> out;
  out.reserve(graphs.size());
  for (size_t i = 0; i < graphs.size(); ++i) {
    const GraphSet *set = sets.size() == 1 ? sets[0] : sets[i];
    if (!set) throw std::invalid_argument("sets holds None; expected GraphSets");
    if (graphs[i] < 0 || graphs[i] >= set->size())
      throw std::invalid_argument("graph " + std::to_string(graphs[i]) + " of a set of " +
                                  std::to_string(set->size()));
    out.push_back({set, graphs[i]});
  }
  return out;
}

constexpr size_t kLengths = 6, kCounts = 10, kNumbers = kLengths + kCounts;

// The programs of a set as arrays: which graphs have one; the lengths of each one's six arrays, and
// its counts; and these arrays, one program after the other.
nb::tuple trees_to_python(const GraphSet &set, hag::Matrix which) {
  const auto trees = set.trees(which);
  if (!trees) throw std::invalid_argument("the graphs were not searched for this matrix");
  std::vector<int64_t> graphs, numbers;
  hag::ProgramArrays all;
  const auto take = [&](auto &to, const auto &from) {
    numbers.push_back(static_cast<int64_t>(from.size()));
    to.insert(to.end(), from.begin(), from.end());
  };
  for (size_t g = 0; g < trees->size(); ++g) {
    if (!(*trees)[g]) continue;
    graphs.push_back(static_cast<int64_t>(g));
    const hag::ProgramArrays &one = (*trees)[g]->arrays;
    take(all.tile_ptr, one.tile_ptr), take(all.op_ptr, one.op_ptr), take(all.source, one.source);
    take(all.target, one.target), take(all.hub_row, one.hub_row), take(all.hub_ptr, one.hub_ptr);
    for (const hag::Counts &counts : (*trees)[g]->counts)
      numbers.insert(numbers.end(), counts.begin(), counts.end());
  }
  return nb::make_tuple(to_numpy(std::move(graphs)), to_numpy(std::move(numbers)),
                        to_python(std::move(all)));
}

hag::Trees trees_from(const GraphSet &set, const Array<int64_t> &graphs,
                      const Array<int64_t> &numbers, const Array<int64_t> &tile_ptr,
                      const Array<int64_t> &op_ptr, const Array<int32_t> &source,
                      const Array<int32_t> &target, const Array<int32_t> &hub_row,
                      const Array<int64_t> &hub_ptr) {
  if (numbers.shape(0) != kNumbers * graphs.shape(0))
    throw std::invalid_argument("there are " + std::to_string(numbers.shape(0)) + " numbers of " +
                                std::to_string(graphs.shape(0)) + " programs; expected " +
                                std::to_string(kNumbers) + " each");
  hag::Trees out(set.size());
  int64_t at[6] = {};
  for (size_t i = 0; i < graphs.shape(0); ++i) {
    const int64_t *const of_one = numbers.data() + kNumbers * i;
    const auto take = [&](const auto &from, int k) {
      const int64_t length = of_one[k], whole = static_cast<int64_t>(from.shape(0));
      if (length < 0 || length > whole - at[k])
        throw std::invalid_argument("a program is longer than its array");
      const auto *begin = from.data() + at[k];
      at[k] += length;
      return std::vector<std::decay_t<decltype(*begin)>>(begin, begin + length);
    };
    const int64_t g = graphs.data()[i];
    if (g < 0 || g >= set.size()) throw std::invalid_argument("a program of no graph of the set");
    hag::ProgramArrays one{take(tile_ptr, 0), take(op_ptr, 1),  take(source, 2),
                           take(target, 3),   take(hub_row, 4), take(hub_ptr, 5)};
    hag::Candidates counts;
    for (size_t k = 0; k < kCounts; ++k) {
      counts[k / 5][k % 5] = of_one[kLengths + k];
      if (of_one[kLengths + k] < 0) throw std::invalid_argument("a count of a program is negative");
    }
    out[g] = std::make_shared<const hag::Tree>(std::move(one), set.graph(g).num_dst, counts);
  }
  return out;
}

template <class T>
nb::ndarray<nb::numpy, const T, nb::ndim<1>> borrowed(const std::vector<T> &values) {
  return nb::ndarray<nb::numpy, const T, nb::ndim<1>>(values.data(), {values.size()}, nb::handle());
}

}  // namespace

void bind_graph_set(nb::module_ &m) {
  using namespace nb::literals;

  nb::class_<GraphSet>(m, "GraphSet", "Graphs with their programs; see GraphSet, in Python.")
      .def(
          "__init__",
          [](GraphSet *self, const IdArray &source, const IdArray &target,
             const Array<int64_t> &edge_ptr, const Array<int64_t> &num_nodes, int threads) {
            const hag::Ids s = ids(source, "source"), t = ids(target, "target");
            same_length(s, t);
            std::vector<int64_t> nodes = counts_of_nodes(num_nodes);
            std::vector<int64_t> ptr =
                checked_offsets(edge_ptr, static_cast<int64_t>(nodes.size()), s.size);
            long_call([&] { return new (self) GraphSet(s, t, ptr, nodes, threads); });
          },
          "source"_a, "target"_a, "edge_ptr"_a, "num_nodes"_a, "threads"_a)
      .def_static(
          "of_csr",
          [](const Array<int64_t> &num_nodes, const Array<int64_t> &row_ptr,
             const Array<int32_t> &col) {
            std::vector<int64_t> nodes = counts_of_nodes(num_nodes);
            return long_call([&] {
              return std::make_unique<GraphSet>(std::move(nodes), to_vector(row_ptr),
                                                to_vector(col));
            });
          },
          "num_nodes"_a, "row_ptr"_a, "col"_a)
      .def("transposed",
           [](const GraphSet &set) { return long_call([&] { return set.transposed(); }); })
      .def(
          "search",
          [](GraphSet &set, const std::string &self_loops, bool idempotent, bool finds,
             double intermediate, int64_t work_per_edge, double worth_it, double reorder,
             int64_t pack_rows, int64_t cut_rows, int threads) {
            const hag::Costs prices =
                costs(intermediate, work_per_edge, worth_it, reorder, pack_rows, cut_rows);
            const hag::Matrix which = matrix(self_loops, idempotent);
            long_call([&] { set.search(which, finds ? &prices : nullptr, threads); });
          },
          "self_loops"_a, "idempotent"_a, "finds"_a, "intermediate"_a, "work_per_edge"_a,
          "worth_it"_a, "reorder"_a, "pack_rows"_a, "cut_rows"_a, "threads"_a)
      .def(
          "has",
          [](const GraphSet &set, const std::string &self_loops, bool idempotent) {
            return set.trees(matrix(self_loops, idempotent)) != nullptr;
          },
          "self_loops"_a, "idempotent"_a)
      .def(
          "counts",
          [](const GraphSet &set, const std::string &self_loops, bool idempotent) {
            const auto found =
                long_call([&] { return set.counts(matrix(self_loops, idempotent)); });
            std::vector<int64_t> flat;
            for (const hag::Candidates &graph : found)
              for (const hag::Counts &counts : graph)
                flat.insert(flat.end(), counts.begin(), counts.end());
            return to_numpy(std::move(flat));
          },
          "self_loops"_a, "idempotent"_a)
      .def(
          "programs",
          [](const GraphSet &set, const std::string &self_loops, bool idempotent) {
            return trees_to_python(set, matrix(self_loops, idempotent));
          },
          "self_loops"_a, "idempotent"_a)
      .def(
          "put",
          [](GraphSet &set, const std::string &self_loops, bool idempotent,
             const Array<int64_t> &graphs, const Array<int64_t> &numbers,
             const Array<int64_t> &tile_ptr, const Array<int64_t> &op_ptr,
             const Array<int32_t> &source, const Array<int32_t> &target,
             const Array<int32_t> &hub_row, const Array<int64_t> &hub_ptr) {
            const hag::Matrix which = matrix(self_loops, idempotent);
            long_call([&] {
              set.put(which, trees_from(set, graphs, numbers, tile_ptr, op_ptr, source, target,
                                        hub_row, hub_ptr));
            });
          },
          "self_loops"_a, "idempotent"_a, "graphs"_a, "numbers"_a, "tile_ptr"_a, "op_ptr"_a,
          "source"_a, "target"_a, "hub_row"_a, "hub_ptr"_a)
      .def_prop_ro("num_graphs", &GraphSet::size)
      .def_prop_ro(
          "facts", [](const GraphSet &set) { return borrowed(set.facts()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "node_ptr", [](const GraphSet &set) { return borrowed(set.node_ptr()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "row_ptr", [](const GraphSet &set) { return borrowed(set.row_ptr()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "col", [](const GraphSet &set) { return borrowed(set.col()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "edge_ptr", [](const GraphSet &set) { return borrowed(set.edge_ptr()); },
          nb::rv_policy::reference_internal);

  m.def(
      "gather",
      [](const std::vector<const GraphSet *> &sets, const std::vector<int64_t> &graphs) {
        const std::vector<hag::Place> where = places(sets, graphs);
        return long_call([&] { return hag::gather(where); });
      },
      "sets"_a, "graphs"_a, "A set of such graphs, with the programs that all of them have.");
  m.def(
      "batch_graphs",
      [](const std::vector<const GraphSet *> &sets, const std::vector<int64_t> &graphs) {
        const std::vector<hag::Place> where = places(sets, graphs);
        auto [csr, facts] = long_call([&] { return hag::batch_graphs(where); });
        return nb::make_tuple(to_numpy(std::move(csr.row_ptr)), to_numpy(std::move(csr.col)),
                              static_cast<int>(facts));
      },
      "sets"_a, "graphs"_a, "The CSR of graphs side by side, and the facts of all.");
  m.def(
      "batch_programs",
      [](const std::vector<const GraphSet *> &sets, const std::vector<int64_t> &graphs,
         const std::string &self_loops, bool idempotent) {
        const std::vector<hag::Place> where = places(sets, graphs);
        const hag::Matrix which = matrix(self_loops, idempotent);
        auto [joint, shares] = long_call([&] { return hag::batch_programs(where, which); });
        return nb::make_tuple(to_python(std::move(joint.arrays)),
                              to_numpy(std::move(joint.tile_scratch)), shares);
      },
      "sets"_a, "graphs"_a, "self_loops"_a, "idempotent"_a,
      "The program of graphs side by side, the scratch rows of its tiles, and whether it shares "
      "sums.");
}
