// Where: an affine map from local indices to logical indices (which value) and to memory (where it goes).
#pragma once

#include <cstdint>
#include <vector>

#include "philox.h"

namespace xinit {

struct Dim {
  int64_t size, stride;  // elements of memory
  uint64_t step;         // logical elements
};

// The window cut into rows: runs of consecutive logical elements, and the dims that lead from row to row. A whole
// contiguous tensor, or a shard of its rows, is one row. What is filled at a time is a unit: the part of one block of
// four words that lies in one row.
struct Window {
  static constexpr int kMaxDims = 8;
  uint64_t base = 0;       // logical index of the first element
  int64_t run = 0;         // elements in a row,
  int64_t run_stride = 1;  //   and their distance in memory
  int64_t rows = 0;
  int64_t units_per_row = 0;  // at most: rows may start anywhere in a block
  bool rows_first = false;    // step through rows before blocks, because neighbouring rows are nearer in memory
  int ndim = 0;               // dims[0] is the one that varies fastest
  Dim dims[kMaxDims];

  XINIT_HD uint64_t units() const { return static_cast<uint64_t>(rows) * static_cast<uint64_t>(units_per_row); }
};

struct Unit {
  uint64_t block;
  int first, last;  // words of the block that lie in the row: [first, last), may be empty
  int64_t offset;   // where the first goes
};

XINIT_HD Unit row_unit(const Window& window, uint64_t row_start, int64_t row_offset, uint64_t index) {
  const uint64_t block = row_start / 4 + index, row_end = row_start + static_cast<uint64_t>(window.run);
  const uint64_t first = block * 4 > row_start ? block * 4 : row_start;
  const uint64_t last = block * 4 + 4 < row_end ? block * 4 + 4 : row_end;
  return {block, static_cast<int>(first - block * 4), static_cast<int>(static_cast<int64_t>(last - block * 4)),
          row_offset + static_cast<int64_t>(first - row_start) * window.run_stride};
}

// Where a row begins: logical index and place in memory.
struct Row {
  uint64_t start;
  int64_t offset;
};

// `at` takes its index in each dim, if that is asked for.
XINIT_HD Row row_at(const Window& window, uint64_t index, int64_t* at = nullptr) {
  Row row{window.base, 0};
  for (int i = 0; i < window.ndim; ++i) {
    const uint64_t size = static_cast<uint64_t>(window.dims[i].size), here = index % size;
    index /= size;
    row.start += here * window.dims[i].step;
    row.offset += static_cast<int64_t>(here) * window.dims[i].stride;
    if (at) at[i] = static_cast<int64_t>(here);
  }
  return row;
}

// The unit of that index, from scratch.
XINIT_HD Unit unit_at(const Window& window, uint64_t index) {
  const uint64_t divisor = static_cast<uint64_t>(window.rows_first ? window.rows : window.units_per_row);
  const uint64_t quotient = index / divisor, remainder = index % divisor;
  const Row row = row_at(window, window.rows_first ? remainder : quotient);
  return row_unit(window, row.start, row.offset, window.rows_first ? quotient : remainder);
}

// A window over these dims, in any order. A tensor of more than kMaxDims dims that do not coalesce takes several
// windows; `offset` is where each begins in memory.
struct Placed {
  Window window;
  int64_t offset;
};
std::vector<Placed> make_windows(uint64_t base, std::vector<Dim> dims);

}  // namespace xinit
