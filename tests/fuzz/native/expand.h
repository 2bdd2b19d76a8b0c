// The slow, obvious twin of a program: the sources of each row, as a list.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "input.h"

using Row = std::vector<int32_t>;

constexpr size_t kMostTerms = 1 << 14;  // sums nest: a few ops may stand for 2^60 terms

// Of a valid program; empty where there are too many terms. Without the diagonal.
inline std::vector<Row> expand(const hag::ProgramArrays &a, int64_t num_dst) {
  std::vector<Row> rows(num_dst);
  std::map<int64_t, Row> partial;
  size_t terms = 0;
  for (size_t tile = 0; tile + 1 < a.tile_ptr.size(); ++tile) {
    std::map<int32_t, Row> scratch;
    for (int64_t op = a.tile_ptr[tile]; op < a.tile_ptr[tile + 1]; ++op) {
      Row sum;
      for (int64_t k = a.op_ptr[op]; k < a.op_ptr[op + 1]; ++k) {
        const int32_t s = a.source[k];
        if (s >= 0) sum.push_back(s);
        else sum.insert(sum.end(), scratch[~s].begin(), scratch[~s].end());
        if (sum.size() > kMostTerms) return {};
      }
      if ((terms += sum.size()) > 8 * kMostTerms) return {};
      const int64_t t = a.target[op];
      if (t < 0) scratch[~a.target[op]] = sum;
      else if (t < num_dst) rows[t] = sum;
      else partial[t - num_dst] = sum;
    }
  }
  for (size_t h = 0; h < a.hub_row.size(); ++h)
    for (int64_t p = a.hub_ptr[h]; p < a.hub_ptr[h + 1]; ++p)
      rows[a.hub_row[h]].insert(rows[a.hub_row[h]].end(), partial[p].begin(), partial[p].end());
  for (Row &row : rows) std::sort(row.begin(), row.end());
  return rows;
}

inline hag::CsrArrays matrix_of(const std::vector<Row> &rows) {
  hag::CsrArrays out{{0}, {}};
  for (const Row &row : rows) {
    out.col.insert(out.col.end(), row.begin(), row.end());
    out.row_ptr.push_back(static_cast<int64_t>(out.col.size()));
  }
  return out;
}

// What a program computes is what its rows say: in whole numbers, exactly.
inline void holds(const hag::Program &program, const std::vector<Row> &rows) {
  constexpr int64_t width = 3;
  const int64_t num_src = program.num_src(), num_dst = program.num_dst();
  std::vector<double> x(num_src * width), y(num_dst * width, -1e300);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>((i * 7 + 3) % 11);
  program.run({x.data(), y.data(), 1, width, width, num_src * width, num_src, num_dst, 1, 0,
               nullptr, nullptr, 1});
  for (int64_t v = 0; v < num_dst; ++v)
    for (int64_t f = 0; f < width; ++f) {
      double sum =
          program.diagonal() ? static_cast<double>(program.diagonal()) * x[v * width + f] : 0.0;
      for (const int32_t s : rows[v]) sum += x[s * width + f];
      HOLDS(y[v * width + f] == sum);
    }
}
