// Running programs of tiles on the CPU: validation, threads, scratch. The arithmetic is in
// tile_rows.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "run/ops.h"
#include "run/tile_abi.h"

namespace hag {

// A program of tiles, see Program, in Python. The constructor checks every index, so that `run` can
// trust them all, unless it `is_plain`, as plain_program made it, or concatenate did, with a
// `tile_scratch`; it throws std::invalid_argument.
class Program {
 public:
  Program(View<int64_t> tile_ptr, View<int64_t> op_ptr, View<int32_t> source, View<int32_t> target,
          View<int32_t> hub_row, View<int64_t> hub_ptr, int64_t num_src, int64_t num_dst,
          int64_t diagonal, bool is_plain = false, bool is_passing = false,
          View<int32_t> tile_scratch = {});

  // y = t * (REDUCE of the program over s * x, + d * s * x) for every matrix of a batch.
  // y is contiguous [batch, num_dst, width]; strides of x are in elements.
  struct Arguments {
    const void *x;
    void *y;
    int64_t batch, width, x_row_stride, x_batch_stride, x_rows, y_rows;
    int dtype, reduce;
    const void *source_scale, *target_scale;  // may be null
    int threads;
  };
  void run(const Arguments &arguments) const;

  int64_t num_tiles() const { return tile_ptr_.size - 1; }
  int64_t num_ops() const { return op_ptr_.size - 1; }
  int64_t num_partials() const { return num_partials_; }
  int64_t scratch_rows() const { return max_scratch_; }
  int64_t num_src() const { return num_src_; }
  int64_t num_dst() const { return num_dst_; }
  int64_t diagonal() const { return diagonal_; }
  const View<int64_t> &tile_ptr() const { return tile_ptr_; }
  const View<int64_t> &op_ptr() const { return op_ptr_; }
  const View<int32_t> &source() const { return source_; }
  const View<int32_t> &target() const { return target_; }
  const View<int32_t> &hub_row() const { return hub_row_; }
  const View<int64_t> &hub_ptr() const { return hub_ptr_; }
  const std::vector<int32_t> &tile_scratch() const { return tile_scratch_; }

 private:
  void check_tiles();
  void order_tiles();
  const OpOrder *narrow_order() const;

  View<int64_t> tile_ptr_, op_ptr_;
  View<int32_t> source_, target_, hub_row_;
  View<int64_t> hub_ptr_;
  int64_t num_src_, num_dst_, diagonal_, num_partials_ = 0, max_scratch_ = 0;
  std::vector<int32_t> tile_scratch_;  // scratch rows of each tile
  std::vector<int32_t> order_;         // tiles as they are started; empty: in their own order
  int64_t num_heavy_ = 0;              // the first of `order_`, started one by one
  const int narrow_from_;              // the run of narrow rows from which on they have an order
  mutable std::atomic<int> narrow_runs_{0};
  mutable std::once_flag narrow_once_;
  mutable OpOrder narrow_;
};

std::vector<std::string> reducers();  // their names, in the order of their codes

int64_t second_cache_bytes();     // of a core; 0 where the system does not say
int64_t last_cache_bytes();       // of it, what a program may count on; 0 as above
int element_size(int dtype);      // bytes; throws std::invalid_argument at an unknown one
int accumulator_size(int dtype);  // bytes of the dtype that sums accumulate in

// Contiguous arrays: [batch, num_cols, width] on the sources' side, [batch, num_rows, width] on the
// targets'. The graph must be valid: a HAG's is.
void masked_sum(const HagMaskedSum &args, int64_t num_rows, int64_t batch, int threads);

// Asks for huge pages under a large array that is about to be written for the first time: page
// faults cost more than the aggregation itself.
void advise_huge_pages(void *data, int64_t bytes);

}  // namespace hag
