// A program as the search makes it and as batches of graphs join it.
#pragma once

#include <cstdint>
#include <vector>

namespace hag {

// The arrays of a program: Program, in Python, says what they mean.
struct ProgramArrays {
  std::vector<int64_t> tile_ptr, op_ptr;
  std::vector<int32_t> source, target;
  std::vector<int32_t> hub_row;
  std::vector<int64_t> hub_ptr;
};

// Rows longer than this become partial sums in tiles of their own.
constexpr int64_t kHubLength = 4096;
constexpr int64_t kHubPart = 2048;

}  // namespace hag
