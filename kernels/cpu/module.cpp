#include <nanobind/nanobind.h>

void bind_graph(nanobind::module_ &m);
void bind_aggregate(nanobind::module_ &m);
void bind_weighted(nanobind::module_ &m);

NB_MODULE(_cpu, m) {
  m.doc() = "The native CPU core: graphs, search and aggregation over arrays.";
  bind_graph(m);
  bind_aggregate(m);
  bind_weighted(m);
}
