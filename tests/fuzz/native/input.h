// What a fuzzer's bytes stand for: numbers, mostly small ones, arrays of them, graphs and programs.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "graph.h"
#include "program_arrays.h"
#include "run/aggregate.h"

// The door let something through, or refused what is right.
#define HOLDS(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

class Input {
 public:
  Input(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() { return at_ < end_ ? *at_++ : 0; }

  // Up to 0xEF: the number less 64; above: extremes, or the next eight bytes.
  int64_t number() {
    static constexpr int64_t extremes[] = {
        INT32_MIN, INT32_MAX, int64_t{1} << 31, int64_t{1} << 40, INT64_MIN, INT64_MAX, -65, 1000};
    const uint8_t tag = byte();
    if (tag < 0xF0) return int64_t{tag} - 64;
    if (tag < 0xF8) return extremes[tag - 0xF0];
    uint64_t wide = 0;
    for (int i = 0; i < 8; ++i) wide |= uint64_t{byte()} << (8 * i);
    return static_cast<int64_t>(wide);
  }

  int64_t below(int64_t limit) { return byte() % limit; }

  template <class T>
  std::vector<T> array() {
    std::vector<T> out(byte());
    for (T &value : out) value = static_cast<T>(number());
    return out;
  }

  hag::ProgramArrays program() {
    hag::ProgramArrays out;
    out.tile_ptr = array<int64_t>(), out.op_ptr = array<int64_t>();
    out.source = array<int32_t>(), out.target = array<int32_t>();
    out.hub_row = array<int32_t>(), out.hub_ptr = array<int64_t>();
    return out;
  }

  // A graph in canonical form of up to `most` nodes on each side.
  hag::CsrArrays graph(int64_t most, bool square, int64_t *num_src) {
    const int64_t num_dst = below(most + 1);
    *num_src = square ? num_dst : below(most + 1);
    std::vector<int32_t> source, target;
    const int64_t edges = num_dst && *num_src ? byte() : 0;
    for (int64_t e = 0; e < edges; ++e) {
      source.push_back(static_cast<int32_t>(below(*num_src)));
      target.push_back(static_cast<int32_t>(below(num_dst)));
    }
    const hag::Ids s{source.data(), edges, 1, false}, t{target.data(), edges, 1, false};
    return hag::build_directions(s, t, *num_src, num_dst, false, 1).forward;
  }

 private:
  const uint8_t *at_, *const end_;
};

template <class T>
hag::View<T> view(const std::vector<T> &values) {
  return {values.data(), static_cast<int64_t>(values.size())};
}

inline hag::Program over(const hag::ProgramArrays &a, int64_t num_src, int64_t num_dst,
                         int64_t diagonal) {
  return hag::Program(view(a.tile_ptr), view(a.op_ptr), view(a.source), view(a.target),
                      view(a.hub_row), view(a.hub_ptr), num_src, num_dst, diagonal);
}

inline hag::Csr over(const hag::CsrArrays &a, int64_t num_src) {
  return {a.row_ptr.data(), a.col.data(), static_cast<int64_t>(a.row_ptr.size()) - 1, num_src};
}
