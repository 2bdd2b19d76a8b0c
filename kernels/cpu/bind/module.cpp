#include <nanobind/nanobind.h>

void bind_graph(nanobind::module_ &m);
void bind_graph_set(nanobind::module_ &m);
void bind_aggregate(nanobind::module_ &m);
void bind_weighted(nanobind::module_ &m);
void bind_attend(nanobind::module_ &m);

NB_MODULE(_cpu, m) {
  // Nothing here holds what could hold it in turn, so what is left at exit is no cycle: torch does
  // not release the Python objects of an autograd graph, nor a daemon thread its frames, once the
  // interpreter ends. Tests count what is alive before that (tests/test_exit.py).
  nanobind::set_leak_warnings(false);
  m.doc() = "The native CPU core: graphs, search and aggregation over arrays.";
  bind_graph(m);
  bind_graph_set(m);
  bind_aggregate(m);
  bind_weighted(m);
  bind_attend(m);
}
