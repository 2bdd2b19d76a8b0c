#include "attend/attend.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "refuse.h"
#include "run/instruction_set.h"
#include "run/pieces.h"
#include "threads.h"

namespace hag {
namespace {

struct Kernels {
  decltype(&hag_attend_rows_baseline) rows;
  decltype(&hag_attend_scores_baseline) scores;
  decltype(&hag_attend_part_baseline) part;
  decltype(&hag_attend_edges_baseline) edges;
  decltype(&hag_attend_part_edges_baseline) part_edges;
  decltype(&hag_attend_part_by_scores_baseline) part_by_scores;
  decltype(&hag_attend_by_value_baseline) by_value;
  decltype(&hag_attend_less_inner_baseline) less_inner;
  decltype(&hag_attend_by_source_baseline) by_source;
  decltype(&hag_attend_by_target_baseline) by_target;
  decltype(&hag_attend_dot_baseline) dot;
};

#define HAG_KERNELS(ISA)                                                                     \
  {hag_attend_rows_##ISA,      hag_attend_scores_##ISA,     hag_attend_part_##ISA,           \
   hag_attend_edges_##ISA,     hag_attend_part_edges_##ISA, hag_attend_part_by_scores_##ISA, \
   hag_attend_by_value_##ISA,  hag_attend_less_inner_##ISA, hag_attend_by_source_##ISA,      \
   hag_attend_by_target_##ISA, hag_attend_dot_##ISA}
const Kernels kKernels[] = {HAG_EVERY_ISA(HAG_KERNELS)};

const Kernels &kernels() { return kKernels[isa_in_use()]; }

// ---------------------------------------------------------------- what may be passed

int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t all = 1;
  for (const int64_t size : sizes) {
    if (size < 0) refuse("a size is negative: ", size);
    if (__builtin_mul_overflow(all, size, &all)) refuse("sizes are too large");
  }
  return all;
}

void expect(const char *name, const Numbers &given, std::initializer_list<int64_t> sizes,
            bool needed = true) {
  const int64_t count = product(sizes);
  if (!given.data && (!needed || count == 0)) return;
  if (!given.data || given.count != count)
    refuse(name, " has ", given.count, " numbers, expected ", count);
}

void expect_graph(const HagAttend &a) {
  product({a.num_rows, 3, a.heads, a.width, 8});
  product({a.num_cols, a.heads, a.key_width, 8});
  product({a.num_edges, a.heads, a.edge_width, 8});
  const int64_t edges = a.num_rows > 0 ? a.row_ptr[a.num_rows] : 0;
  if (edges != a.num_edges) refuse("there are ", a.num_edges, " edges, expected ", edges);
  if (a.dtype != HAG_FLOAT32 && a.dtype != HAG_FLOAT64) refuse("dtype is ", a.dtype);
  if (!a.order) return;
  for (int64_t k = 0; k < a.num_edges; ++k)
    if (a.order[k] < 0 || a.order[k] >= a.num_edges)
      refuse("order[", k, "] is ", a.order[k], "; expected 0 <= row < ", a.num_edges);
}

bool has_vectors(const HagAttend &a) {
  return a.score == HAG_SCORE_VECTOR || a.score == HAG_SCORE_DOT;
}

// Checks tensors, or what gradients by them are written to, of which none is needed.
void expect_tensors(const HagAttend &a, const AttendTensors &t, bool needed) {
  const int64_t E = a.num_edges, H = a.heads, K = has_vectors(a) ? a.key_width : 1;
  const bool vectors = needed && has_vectors(a), projected = t.projection.data;
  expect("value", t.value, {a.num_cols, H, a.width}, needed);
  expect("key", t.key, {a.num_cols, H, K}, vectors);
  expect("query", t.query, {a.num_rows, H, K}, vectors);
  expect("weight", t.weight, {H, K}, needed && a.score == HAG_SCORE_VECTOR);
  expect("bias", t.bias, {E, H}, needed && a.score == HAG_SCORE_GIVEN);
  expect("mask", t.mask, {E, H}, false);
  expect("projection", t.projection, {a.edge_width, H, K}, false);
  if (needed && a.score == HAG_SCORE_VECTOR && H * K == 0) {
    // Vectors of no numbers have no term of edges, whatever the width of these.
  } else if (needed && a.score == HAG_SCORE_VECTOR && !projected) {
    expect("edges", t.edges, {E, H, K}, false);
  } else if (needed) {
    expect("edges", t.edges, {E, a.edge_width}, projected || t.edge_query.data);
  }
  expect("edge_query", t.edge_query, {a.num_rows, H, a.edge_width}, false);
}

HagAttend filled(const HagAttend &shape, const AttendTensors &t) {
  expect_graph(shape);
  if (shape.score < 0 || shape.score >= HAG_NUM_SCORES) refuse("score is ", shape.score);
  if (shape.normalise < 0 || shape.normalise >= HAG_NUM_NORMALISES)
    refuse("normalise is ", shape.normalise);
  expect_tensors(shape, t, true);
  HagAttend a = shape;
  a.value = t.value.data, a.key = t.key.data, a.query = t.query.data, a.weight = t.weight.data;
  a.bias = t.bias.data, a.edges = t.edges.data, a.edge_query = t.edge_query.data;
  a.projection = t.projection.data, a.mask = t.mask.data;
  if (!has_vectors(a)) a.key_width = 1;
  if (a.score == HAG_SCORE_VECTOR && a.heads * a.key_width == 0) a.edges = nullptr;
  if (!a.edge_query && !a.projection) a.edge_width = 0;
  return a;
}

int64_t number_size(const HagAttend &a) { return a.dtype == HAG_FLOAT64 ? 8 : 4; }

// ---------------------------------------------------------------- work

// Edges that are worked on at once: their scores and the rows that they read stay near.
int64_t block_of(const HagAttend &a) {
  constexpr int64_t kPairs = 1024, kBytes = 32768, kMost = 64, kLeast = 4;  // kMost: Segments
  const int64_t bytes = a.heads * std::max(a.width, a.key_width) * number_size(a);
  return std::clamp(std::min(kPairs / a.heads, kBytes / std::max<int64_t>(bytes, 1)), kLeast,
                    kMost);
}

// What a kernel takes of its scratch: see attend_rows.h, where the same names are.
int64_t scratch_numbers(const HagAttend &a, int64_t row_numbers) {
  constexpr int64_t kSlack = 64, kMostLanes = 16;
  const int64_t run = a.block * a.heads + kSlack, vectors = a.heads * a.key_width;
  return 8 * run + row_numbers + 4 * kMostLanes * a.heads + 4 * a.heads +
         a.heads * (a.width + a.edge_width) + (a.projection ? a.block + 2 : 2) * vectors +
         4 * (a.block + 1) + 24 * kSlack;
}

int64_t longest_row(const int64_t *row_ptr, int64_t num_rows) {
  int64_t longest = 0;
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t length = row_ptr[i + 1] - row_ptr[i];
    if (length <= kHubLength) longest = std::max(longest, length);
  }
  return longest;
}

// Runs body(item, scratch) on threads that have scratch of their own.
template <class Body>
void share_scratch(int threads, int64_t count, int64_t bytes, const Body &body) {
  constexpr int64_t kLine = 64;
  const int64_t each = (bytes + 2 * kLine) / kLine * kLine;
  const std::unique_ptr<char[]> all(new char[each * threads + kLine]);
  char *first = all.get() + (kLine - reinterpret_cast<uintptr_t>(all.get()) % kLine) % kLine;
  Counter counter(count, 1, threads);
  in_parallel(threads, [&](int thread) {
    counter.share(thread, [&](int64_t item, int64_t) { body(item, first + thread * each); });
  });
}

int threads_for(const HagAttend &a, int threads) {
  const int64_t width = a.heads * (a.width + a.key_width + 8);
  return useful_threads(threads, (a.num_edges + 2 * a.num_rows) * width);
}

template <class F>
void add(F *to, const F *from, int64_t numbers) {
  for (int64_t k = 0; k < numbers; ++k) to[k] += from[k];
}

// ---------------------------------------------------------------- long rows, forward

// The rows that are too long for one thread: the largest scores of all their parts first, then
// their exponentials and sums, so that no part's are scaled.
template <class F>
class HubRows {
 public:
  HubRows(const HagAttend &args, const Hubs &hubs)
      : a_(args),
        hubs_(hubs),
        parts_(static_cast<int64_t>(hubs.parts.size())),
        edge_width_(args.edge_query ? args.edge_width : 0),
        numbers_(args.heads * (args.width + edge_width_)),
        at_(parts_ + 1, 0) {
    constexpr int64_t kSlack = 64;
    for (int64_t p = 0; p < parts_; ++p)
      at_[p + 1] = at_[p] + (hubs.parts[p].end - hubs.parts[p].begin) * args.heads + kSlack;
    scores_.reset(new F[at_[parts_]]);
    largest_.resize(parts_ * args.heads), total_.resize(parts_ * args.heads);
    sums_.resize(parts_ * numbers_);
  }

  void run(const Kernels &k, int threads, int64_t bytes) {
    if (parts_ == 0) return;
    const int64_t H = a_.heads;
    share_scratch(threads, parts_, bytes, [&](int64_t p, void *scratch) {
      const Hubs::Part &part = hubs_.parts[p];
      k.scores(&a_, part.row, part.begin, part.end, &scores_[at_[p]], &largest_[p * H], scratch);
    });
    each_hub([&](int64_t first, int64_t last, int64_t) {
      for (int64_t h = 0; h < H; ++h) {
        F most = largest_[first * H + h];
        for (int64_t p = first; p < last; ++p) most = std::max(most, largest_[p * H + h]);
        for (int64_t p = first; p < last; ++p) largest_[p * H + h] = most;
      }
    });
    share_scratch(threads, parts_, bytes, [&](int64_t p, void *scratch) {
      const Hubs::Part &part = hubs_.parts[p];
      k.part(&a_, part.row, part.begin, part.end, &scores_[at_[p]], &largest_[p * H],
             &total_[p * H], &sums_[p * numbers_], scratch);
    });
    each_hub([&](int64_t first, int64_t last, int64_t row) { finish(first, last, row); });
  }

 private:
  template <class Body>
  void each_hub(const Body &body) {
    for (size_t i = 0; i < hubs_.row.size(); ++i)
      body(hubs_.ptr[i], hubs_.ptr[i + 1], hubs_.row[i]);
  }

  void finish(int64_t first, int64_t last, int64_t row) {
    const int64_t H = a_.heads, C = a_.width, D = edge_width_;
    for (int64_t p = first + 1; p < last; ++p) {
      add(&total_[first * H], &total_[p * H], H);
      add(&sums_[first * numbers_], &sums_[p * numbers_], numbers_);
    }
    const bool soft = a_.normalise == HAG_NORMALISE_SOFTMAX;
    F *y = static_cast<F *>(a_.y) + row * numbers_;
    F *kept = static_cast<F *>(a_.kept) + row * 2 * H;
    const F *sums = &sums_[first * numbers_];
    for (int64_t h = 0; h < H; ++h) {
      const F inverse = soft ? F(1) / (total_[first * H + h] + F(1e-16)) : F(1);
      if (a_.kept) kept[h] = soft ? largest_[first * H + h] : F(0), kept[H + h] = inverse;
      for (int64_t c = 0; c < C; ++c) y[h * (C + D) + c] = sums[h * C + c] * inverse;
      for (int64_t d = 0; d < D; ++d) y[h * (C + D) + C + d] = sums[H * C + h * D + d] * inverse;
    }
  }

  const HagAttend &a_;
  const Hubs &hubs_;
  const int64_t parts_, edge_width_, numbers_;
  std::vector<int64_t> at_;
  std::unique_ptr<F[]> scores_;
  std::vector<F> largest_, total_, sums_;
};

// ---------------------------------------------------------------- gradients

typedef decltype(&hag_attend_by_source_baseline) Ranges;

HagAttendRange part_of(const Hubs::Part &part) {
  return {part.row, part.row + 1, part.begin, part.end};
}
HagAttendRange rows_of(const std::vector<int64_t> &first, int64_t piece) {
  return {first[piece], first[piece + 1], -1, -1};
}

// Sums over the rows of a graph, and over all its edges.
struct Wanted {
  void *first = nullptr, *second = nullptr;
  int64_t first_numbers = 0, second_numbers = 0;  // of a row
  void *weight = nullptr, *projection = nullptr;
  int64_t weight_numbers = 0, projection_numbers = 0;
};

// Runs a kernel over all rows. What is summed over all edges is summed a piece of the graph at a
// time, and the pieces are a matter of the graph alone.
template <class F>
void run_ranges(const HagAttend &a, Ranges kernel, const Wanted &w, int threads, int64_t bytes) {
  constexpr int64_t kPieces = 64, kPieceEdges = 4096;
  const Hubs hubs(a.row_ptr, a.num_rows);
  const int64_t parts = static_cast<int64_t>(hubs.parts.size());
  const bool sums = w.weight || w.projection;
  const int64_t fixed = std::clamp<int64_t>(a.num_edges / kPieceEdges, 1, kPieces);
  const int64_t pieces = sums ? fixed : threads == 1 ? 1 : threads * kPiecesPerThread;
  const int64_t chunks = sums ? std::min(parts, kPieces) : parts;
  const int64_t of_all =
      (w.weight ? w.weight_numbers : 0) + (w.projection ? w.projection_numbers : 0);
  const int64_t of_row = w.first_numbers + w.second_numbers;
  const std::unique_ptr<F[]> partial(new F[parts * of_row + 1]);
  std::vector<F> all((pieces + chunks) * of_all, F(0));

  const auto with_sums = [&](HagAttendSums to, int64_t item) {
    F *own = all.data() + item * of_all;
    to.d_weight = w.weight ? own : nullptr;
    to.d_projection = w.projection ? own + (w.weight ? w.weight_numbers : 0) : nullptr;
    return to;
  };
  const std::vector<int64_t> first = cut_rows(a.row_ptr, a.num_rows, pieces);
  share_scratch(threads, chunks + pieces, bytes, [&](int64_t item, void *scratch) {
    if (item < chunks) {
      for (int64_t p = parts * item / chunks; p < parts * (item + 1) / chunks; ++p) {
        const Hubs::Part &part = hubs.parts[p];
        F *own = partial.get() + p * of_row;
        const HagAttendSums to = with_sums(
            {w.first ? own : nullptr, w.second ? own + w.first_numbers : nullptr, nullptr, nullptr},
            item);
        const HagAttendRange range = part_of(part);
        kernel(&a, &range, &to, scratch);
      }
      return;
    }
    const HagAttendRange range = rows_of(first, item - chunks);
    const HagAttendSums to =
        with_sums({w.first ? static_cast<F *>(w.first) + range.first * w.first_numbers : nullptr,
                   w.second ? static_cast<F *>(w.second) + range.first * w.second_numbers : nullptr,
                   nullptr, nullptr},
                  item);
    kernel(&a, &range, &to, scratch);
  });
  for (size_t hub = 0; hub < hubs.row.size(); ++hub) {
    const int64_t row = hubs.row[hub];
    const auto total = [&](void *out, int64_t numbers, int64_t at, bool more) {
      if (!out) return;
      F *to = static_cast<F *>(out) + row * numbers;
      if (!more) std::fill(to, to + numbers, F(0));
      for (int64_t p = hubs.ptr[hub]; p < hubs.ptr[hub + 1]; ++p)
        add(to, partial.get() + p * of_row + at, numbers);
    };
    total(w.first, w.first_numbers, 0, false);
    total(w.second, w.second_numbers, w.first_numbers, w.second == w.first);
  }
  if (!sums) return;
  const auto total = [&](void *out, int64_t numbers, int64_t at) {
    if (!out) return;
    F *to = static_cast<F *>(out);
    std::fill(to, to + numbers, F(0));
    for (int64_t item = 0; item < pieces + chunks; ++item)
      add(to, all.data() + item * of_all + at, numbers);
  };
  total(w.weight, w.weight_numbers, 0);
  total(w.projection, w.projection_numbers, w.weight ? w.weight_numbers : 0);
}

// Runs body(range, scratch) over all rows, long ones in parts.
template <class Body>
void each_range(const HagAttend &a, int threads, int64_t bytes, const Body &body) {
  const Hubs hubs(a.row_ptr, a.num_rows);
  const int64_t parts = static_cast<int64_t>(hubs.parts.size());
  const int64_t pieces = threads == 1 ? 1 : threads * kPiecesPerThread;
  const std::vector<int64_t> first = cut_rows(a.row_ptr, a.num_rows, pieces);
  share_scratch(threads, parts + pieces, bytes, [&](int64_t item, void *scratch) {
    if (item < parts) {
      return body(part_of(hubs.parts[item]), scratch);
    }
    body(rows_of(first, item - parts), scratch);
  });
}

template <class F>
class Backward {
  static constexpr int64_t kSlack = 64;

 public:
  Backward(HagAttend &args, const Reverse &reverse, const AttendTensors &out, int threads)
      : a_(args),
        reverse_(reverse),
        out_(out),
        threads_(threads_for(args, threads)),
        bytes_(scratch_numbers(args, 0) * static_cast<int64_t>(sizeof(F))),
        k_(kernels()) {}

  // Gradients may be written over the values and keys, so sources come last.
  void run() {
    const int64_t numbers = a_.num_edges * a_.heads + kSlack;
    of_edges_.reset(new F[2 * numbers]);  // one block: glibc gives one of two back to the system
    a_.by_score = of_edges_.get(), a_.shares = of_edges_.get() + numbers;
    a_.d_bias = out_.bias.data, a_.d_mask = out_.mask.data, a_.d_edges = out_.edges.data;
    const bool by_value = !has_vectors(a_);
    if (by_value) values();
    else edges();
    if (out_.query.data || out_.weight.data || out_.edges.data || out_.edge_query.data ||
        out_.projection.data)
      targets();
    if (out_.key.data || (out_.value.data && !by_value))
      sources(by_value ? nullptr : out_.value.data);
  }

 private:
  // The gradients by the scores: row by row, long ones in parts.
  void edges() {
    const Hubs hubs(a_.row_ptr, a_.num_rows);
    const int64_t parts = static_cast<int64_t>(hubs.parts.size()), H = a_.heads;
    std::vector<int64_t> at(parts + 1, 0);
    for (int64_t p = 0; p < parts; ++p)
      at[p + 1] = at[p] + 3 * ((hubs.parts[p].end - hubs.parts[p].begin) * H + kSlack);
    const std::unique_ptr<F[]> rooms(new F[at[parts] + 1]);
    std::vector<F> inner(parts * H);
    each_part(hubs, bytes_, [&](int64_t p, void *scratch) {
      const Hubs::Part &part = hubs.parts[p];
      k_.part_edges(&a_, part.row, part.begin, part.end, &rooms[at[p]], &inner[p * H], scratch);
    });
    for (size_t hub = 0; hub < hubs.row.size() && !a_.inner; ++hub) {
      const int64_t first = hubs.ptr[hub], last = hubs.ptr[hub + 1];
      for (int64_t p = first + 1; p < last; ++p) add(&inner[first * H], &inner[p * H], H);
      for (int64_t p = first + 1; p < last; ++p) std::copy_n(&inner[first * H], H, &inner[p * H]);
    }
    each_part(hubs, bytes_, [&](int64_t p, void *scratch) {
      const Hubs::Part &part = hubs.parts[p];
      k_.part_by_scores(&a_, part.begin, part.end, &rooms[at[p]], &inner[p * H], scratch);
    });
    a_.longest = longest_row(a_.row_ptr, a_.num_rows);
    rows(k_.edges, 3 * (a_.longest * H + kSlack));
    a_.longest = kHubLength;
  }

  // Where a score is one number of each end: the gradients by values and scores.
  void values() {
    Wanted w;
    w.first = out_.value.data, w.first_numbers = a_.heads * a_.width;
    run_ranges<F>(by_source(), k_.by_value, w, threads_, bytes_);
    if (a_.normalise != HAG_NORMALISE_SOFTMAX) return;
    a_.longest = a_.num_edges;
    rows(k_.less_inner, 0);
    a_.longest = kHubLength;
  }

  void rows(decltype(&hag_attend_edges_baseline) kernel, int64_t numbers) {
    const int64_t bytes = scratch_numbers(a_, numbers) * static_cast<int64_t>(sizeof(F));
    const int64_t pieces = threads_ == 1 ? 1 : threads_ * kPiecesPerThread;
    const std::vector<int64_t> first = cut_rows(a_.row_ptr, a_.num_rows, pieces);
    share_scratch(threads_, pieces, bytes,
                  [&](int64_t p, void *scratch) { kernel(&a_, first[p], first[p + 1], scratch); });
  }

  template <class Body>
  void each_part(const Hubs &hubs, int64_t bytes, const Body &body) {
    if (!hubs.parts.empty())
      share_scratch(threads_, static_cast<int64_t>(hubs.parts.size()), bytes, body);
  }

  HagAttend by_source() const {
    HagAttend a = a_;
    a.row_ptr = reverse_.row_ptr, a.col = reverse_.col, a.place = reverse_.place;
    a.num_rows = a_.num_cols, a.num_cols = a_.num_rows;
    return a;
  }

  void sources(void *value) {
    Wanted w;
    w.first = value, w.first_numbers = a_.heads * a_.width;
    w.second = out_.key.data, w.second_numbers = a_.heads * a_.key_width;
    run_ranges<F>(by_source(), k_.by_source, w, threads_, bytes_);
  }

  void targets() {
    Wanted w;
    w.first = out_.query.data, w.first_numbers = a_.heads * a_.key_width;
    w.second = out_.edge_query.data, w.second_numbers = a_.heads * a_.edge_width;
    w.weight = out_.weight.data, w.weight_numbers = a_.heads * a_.key_width;
    w.projection = out_.projection.data;
    w.projection_numbers = a_.edge_width * a_.heads * a_.key_width;
    run_ranges<F>(a_, k_.by_target, w, threads_, bytes_);
  }

  HagAttend &a_;
  const Reverse &reverse_;
  const AttendTensors &out_;
  const int threads_;
  const int64_t bytes_;
  const Kernels &k_;
  std::unique_ptr<F[]> of_edges_;
};

template <class F>
void run_attend(HagAttend &a, int threads) {
  a.longest = longest_row(a.row_ptr, a.num_rows);
  const Hubs hubs(a.row_ptr, a.num_rows);
  const int used = threads_for(a, threads);
  const int64_t bytes = scratch_numbers(a, a.longest * a.heads) * static_cast<int64_t>(sizeof(F));
  const Kernels &k = kernels();
  HubRows<F>(a, hubs).run(k, used, bytes);
  const int64_t pieces = used == 1 ? 1 : used * kPiecesPerThread;
  const std::vector<int64_t> first = cut_rows(a.row_ptr, a.num_rows, pieces);
  share_scratch(used, pieces, bytes,
                [&](int64_t p, void *scratch) { k.rows(&a, first[p], first[p + 1], scratch); });
}

}  // namespace

void attend(const HagAttend &shape, const AttendTensors &tensors, const Numbers &y,
            const Numbers &kept, int threads) {
  HagAttend a = filled(shape, tensors);
  const int64_t sums = a.width + (a.edge_query ? a.edge_width : 0);
  expect("y", y, {a.num_rows, a.heads, sums});
  expect("kept", kept, {a.num_rows, 2, a.heads}, false);
  if (a.num_rows == 0 || a.heads == 0) return;
  if (!a.edge_query && !a.projection) a.edge_width = 0;
  a.y = y.data, a.kept = kept.data, a.block = block_of(a);
  a.dtype == HAG_FLOAT64 ? run_attend<double>(a, threads) : run_attend<float>(a, threads);
}

void attend_backward(const HagAttend &shape, const Reverse &reverse, const AttendTensors &tensors,
                     const Numbers &kept, const AttendGrads &grads, const AttendTensors &out,
                     int threads) {
  HagAttend a = filled(shape, tensors);
  const int64_t D = a.edge_query ? a.edge_width : 0;
  expect("kept", kept, {a.num_rows, 2, a.heads});
  expect("grad", grads.value, {a.num_rows, a.heads, a.width});
  expect("the gradient of edges", grads.edges, {a.num_rows, a.heads, D});
  expect("inner", grads.inner, {a.num_rows, a.heads}, false);
  expect_tensors(a, out, false);
  expect("the gradient by edges", out.edges, {tensors.edges.count}, false);
  expect("the gradient by projection", out.projection, {tensors.projection.count}, false);
  if (a.num_cols > 0 && reverse.row_ptr[a.num_cols] != a.num_edges)
    refuse("the reverse has other edges");
  if (a.heads == 0) return;
  a.kept = kept.data, a.grad = grads.value.data, a.grad_edges = grads.edges.data;
  a.inner = grads.inner.data, a.block = block_of(a);
  a.longest = kHubLength;
  if (a.dtype == HAG_FLOAT64) Backward<double>(a, reverse, out, threads).run();
  else Backward<float>(a, reverse, out, threads).run();
}

void head_dot(const HagAttend &shape, const Numbers &a, const Numbers &b, const Numbers &out,
              int threads) {
  HagAttend args = shape;
  expect_graph(args);
  expect("a", a, {args.num_cols, args.heads, args.width});
  expect("b", b, {args.num_rows, args.heads, args.width});
  expect("out", out, {args.num_edges, args.heads});
  if (args.num_edges == 0 || args.heads == 0) return;
  args.key_width = args.edge_width = 0;
  args.value = a.data, args.query = b.data, args.block = block_of(args);
  args.longest = kHubLength;
  const int64_t bytes = scratch_numbers(args, 0) * number_size(args);
  const Kernels &k = kernels();
  each_range(
      args, threads_for(args, threads), bytes,
      [&](const HagAttendRange &range, void *scratch) { k.dot(&args, &range, out.data, scratch); });
}

}  // namespace hag
