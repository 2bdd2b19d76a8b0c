// A graph in canonical form: CSR by target, the sources of a row in increasing order, duplicates
// kept. Everything here takes arrays whose sizes the bindings have checked.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace hag {

struct Csr {
  const int64_t *row_ptr;
  const int32_t *col;
  int64_t num_dst;
  int64_t num_src;

  int64_t num_edges() const { return row_ptr[num_dst]; }
};

// Which matrix is aggregated: A; A + I; A with exactly one loop a node.
enum class Mode { given, add, fill };
Mode parse_mode(const std::string &self_loops);

// A row as a set (`simple`) and the copies beyond the first (`extra`), both in increasing order.
struct Row {
  std::vector<int32_t> simple;
  std::vector<int32_t> extra;
};
void load_row(const Csr &graph, int64_t row, Mode mode, bool idempotent, Row &out);

// A row as one list in increasing order, copies included, behind what `out` holds.
void append_row(const Csr &graph, int64_t row, Mode mode, bool idempotent,
                std::vector<int32_t> &out);

// A view of node ids, int32 or int64, with a stride in elements.
struct Ids {
  const void *data;
  int64_t size;
  int64_t stride;
  bool wide;

  int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t *>(data)[i * stride]
                : static_cast<const int32_t *>(data)[i * stride];
  }
};

struct CsrArrays {
  std::vector<int64_t> row_ptr;
  std::vector<int32_t> col;
};

// A graph and its reverse, both in canonical form; the reverse may be missing.
struct Directions {
  CsrArrays forward, reverse;
};

// Counting sorts, of which edges that are in order already save some: a check tells. `both`:
// whether the reverse is wanted. Where `loops` is not 0, each of so many first nodes gets one loop
// in place of all loops that there are. Throws std::invalid_argument naming the first id out of
// range.
Directions build_directions(const Ids &source, const Ids &target, int64_t num_src, int64_t num_dst,
                            bool both, int threads, int64_t loops = 0);
CsrArrays transpose_csr(const Csr &graph, int threads);
// The numbers of a graph's edges in the order of its reverse. Fewer than 2^31 edges.
std::vector<int32_t> reversed_order(const Csr &graph, int threads);

// 128 bits of the multiset of edges, whatever their order.
std::pair<uint64_t, uint64_t> edge_hash(const Ids &source, const Ids &target);
std::pair<uint64_t, uint64_t> csr_hash(const Csr &graph);

// Whether these are the graph's edges, in its order.
bool is_in_order(const Ids &source, const Ids &target, const Csr &graph);
// The ends of its edges, in its order.
void write_edges(const Csr &graph, int64_t *source, int64_t *target);

// Adds added[i] to the elements of stretch i of each row: those from ends[i] up to ends[i + 1].
// A row is ends[count] long.
template <class Id>
void add_to_stretches(Id *data, int64_t rows, const int64_t *ends, const int64_t *added,
                      int64_t count);

bool is_symmetric(const Csr &graph);
bool has_duplicates(const Csr &graph);
// Empty where no target has a self-loop.
std::vector<int64_t> count_self_loops(const Csr &graph);

// Throws std::invalid_argument unless `graph` is a canonical CSR with `num_edges` edges.
void check_csr(const Csr &graph, int64_t num_edges);

inline uint64_t mix(uint64_t value) {  // the finaliser of splitmix64
  value += 0x9E3779B97F4A7C15ull;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
  return value ^ (value >> 31);
}

}  // namespace hag
