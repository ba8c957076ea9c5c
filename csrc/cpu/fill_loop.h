// The CPU's loop, one template for every instruction set. L names the lanes: see transforms.h, and here also
//   kLanes             floats in a vector, a multiple of four
//   W, multiply        64-bit lanes of Philox, half as many
//   merge(even, odd)   words of two W as one U: even lanes from the first, odd lanes from the second
//   interleave(x)      x[j] lane l  ->  x[l % 4] at 4 * (l / 4) + j: transposes each group of four lanes
//   store(out, x)      float, double, and the 16-bit types, rounded to nearest even
#pragma once

#include <algorithm>

#include "../fill.h"
#include "../transforms.h"

namespace xinit {

// Generates blocks four words wide, kLanes at a time: a tile. A tile takes the blocks as they come, row after row. If
// all of it is one contiguous row, it goes straight to memory, and so does one of neighbouring rows that lies across
// them; the pieces of others are copied. The loops over tiles have all this inlined, and copies of the round keys and
// the distribution that no store can alias, so that these stay in registers from row to row.
template <class L, Kind kind, Dtype dtype>
class FillLoop {
  using F = typename L::F;
  using U = typename L::U;
  using W = typename L::W;
  using T = typename Element<dtype>::type;
  static constexpr int kBlocks = L::kLanes, kTile = 4 * kBlocks;

 public:
  explicit FillLoop(const Fill& job)
      : window_(job.window),
        out_(static_cast<T*>(job.out)),
        stream_(job.key.stream),
        keys_(schedule(job.key.seed)),
        distribution_(job.distribution) {}

  // The units [begin, end) of the window.
  void run(uint64_t begin, uint64_t end) const {
    if (window_.rows_first)
      across(begin, end);
    else
      along(begin, end);
  }

 private:
  // ---- row after row ----

  void along(uint64_t unit, uint64_t end) const {
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    const int64_t per_row = window_.units_per_row, run = window_.run, stride = window_.run_stride;
    const uint64_t divisor = static_cast<uint64_t>(per_row);
    int64_t index = static_cast<int64_t>(unit % divisor), left = static_cast<int64_t>(end - unit);
    Row row(window_, unit / divisor);
    while (left > 0) {
      Tile tile;
      do {
        // The row's next blocks. Its words, counted from its first block's first, are [phase, stop).
        const int64_t phase = static_cast<int64_t>(row.start % 4), stop = phase + run, blocks = (stop + 3) / 4;
        const int64_t count = std::min(std::min<int64_t>(kBlocks - tile.blocks, blocks - index), left);
        if (count > 0) {
          const int64_t from = std::max(4 * index, phase), to = std::min(4 * (index + count), stop);
          tile.add(row.start / 4 + static_cast<uint64_t>(index), static_cast<int>(count),
                   static_cast<int>(from - 4 * index), static_cast<int>(to - from),
                   row.offset + (from - phase) * stride);
          index += count;
          left -= count;
        }
        if (index >= blocks) {
          left -= per_row - index;
          index = 0;
          row.skip(window_, 1);
        }
      } while (tile.blocks < kBlocks && left > 0);
      fill(tile, keys, d);
    }
  }

  // ---- block after block, each through all rows: the rows are nearer to each other in memory than their elements ----

  void across(uint64_t unit, uint64_t end) const {
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    const uint64_t rows = static_cast<uint64_t>(window_.rows);
    const Dim& rung = window_.dims[0];
    uint64_t index = unit / rows;
    Row row(window_, unit % rows);
    Tile tile;
    while (unit < end) {
      const Unit at = row_unit(window_, row.start, row.offset, index);
      if (rung.stride == 1 && rung.step % 4 == 0 && at.first == 0 && at.last == 4 && end - unit >= kBlocks &&
          rung.size - row.at[0] >= kBlocks) {
        // One block of each of kBlocks rows, lanes in the order of rows: a store for each of its four words.
        F x[4];
        const uint64_t step = rung.step / 4;
        values(at.block + row_lanes(0) * step, at.block + row_lanes(1) * step, keys, d, x);
        store_tile(x, d, out_ + at.offset, window_.run_stride);
        unit += kBlocks;
        if (row.skip(window_, kBlocks)) ++index;
      } else {
        if (at.first < at.last) tile.add(at.block, 1, at.first, at.last - at.first, at.offset);
        ++unit;
        if (row.skip(window_, 1)) ++index;
      }
      if (tile.blocks == kBlocks || (unit >= end && tile.blocks > 0)) {
        fill(tile, keys, d);
        tile.blocks = tile.pieces = 0;
      }
    }
  }

  // ---- tiles ----

  XINIT_HD void values(W even, W odd, const Schedule& keys, const Distribution& d, F (&x)[4]) const {
    const W zero = even ^ even;
    W a[4] = {zero + stream_, zero + (stream_ >> 32), even, even >> 32};
    W b[4] = {zero + stream_, zero + (stream_ >> 32), odd, odd >> 32};
    philox4x32_10<L>(a, keys);
    philox4x32_10<L>(b, keys);
    const U words[4] = {L::merge(a[0], b[0]), L::merge(a[1], b[1]), L::merge(a[2], b[2]), L::merge(a[3], b[3])};
    transform<kind, L>(words, x, d);
  }

  // Four vectors, `stride` elements from one to the next.
  static XINIT_HD void store_tile(F (&x)[4], const Distribution& d, T* out, int64_t stride) {
    XINIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      T* const to = out + i * stride;
      // The bounds are values of the dtype, so clamping before rounding to it is clamping after.
      if constexpr (kClamped<kind> && dtype != Dtype::kDouble)
        x[i] = L::min(L::max(x[i], L::splat(d.low)), L::splat(d.high));
      L::store(DtypeTag<dtype>{}, to, x[i]);
      if constexpr (kClamped<kind> && dtype == Dtype::kDouble)
        for (int j = 0; j < L::kLanes; ++j)
          to[j] = to[j] < d.low_wide ? d.low_wide : to[j] > d.high_wide ? d.high_wide : to[j];
    }
  }

  // Lane l takes the block that interleave puts at 4 * place in memory; even lanes are in the first W, odd in the
  // second.
  static constexpr int lane_of(int place) { return 4 * (place % (kBlocks / 4)) + place / (kBlocks / 4); }

  static XINIT_HD W lane_blocks(int odd) {
    W blocks = {};
    for (int place = 0; place < kBlocks; ++place)
      if (lane_of(place) % 2 == odd) blocks[lane_of(place) / 2] = static_cast<uint64_t>(place);
    return blocks;
  }

  static XINIT_HD W row_lanes(int odd) {
    W rows = {};
    for (int i = 0; i < kBlocks / 2; ++i) rows[i] = static_cast<uint64_t>(2 * i + odd);
    return rows;
  }

  // ---- tiles whose blocks are consecutive in places only ----

  struct Piece {
    int at, count;   // elements of the tile
    int64_t offset;  // of the first in memory
  };

  struct Tile {
    int blocks = 0, pieces = 0;
    Piece piece[kBlocks];
    W even = {}, odd = {};

    // Consecutive blocks take the next places; what stands beyond is overwritten by the next call. `count` of their
    // elements, from `first` on, are wanted.
    XINIT_HD void add(uint64_t block, int number, int first, int count, int64_t offset) {
      const W evens = lane_blocks(0), odds = lane_blocks(1);
      if (blocks == 0) {
        even = evens + block;
        odd = odds + block;
      } else {
        const uint64_t place = static_cast<uint64_t>(blocks);
        even = evens >= place ? evens + (block - place) : even;
        odd = odds >= place ? odds + (block - place) : odd;
      }
      piece[pieces++] = {4 * blocks + first, count, offset};
      blocks += number;
    }
  };

  XINIT_HD void fill(const Tile& tile, const Schedule& keys, const Distribution& d) const {
    const int64_t stride = window_.run_stride;
    F x[4];
    values(tile.even, tile.odd, keys, d, x);
    L::interleave(x);
    if (tile.pieces == 1 && tile.piece[0].count == kTile && stride == 1) {
      store_tile(x, d, out_ + tile.piece[0].offset, L::kLanes);
      return;
    }
    alignas(64) T buffer[kTile];
    store_tile(x, d, buffer, L::kLanes);
    for (int i = 0; i < tile.pieces; ++i) {
      const Piece piece = tile.piece[i];
      int at = piece.at;
      const int end = at + piece.count;
      if (stride == 1)
        copy<1>(out_ + (piece.offset - at), buffer, at, end);
      else
        for (T* to = out_ + piece.offset; at < end; ++at, to += stride) *to = buffer[at];
    }
  }

  // Chunks grow while they are aligned, then shrink: each was written by one store. A load of what two stores have just
  // written waits for them, and a call of the C library costs as much as what it copies here.
  template <int chunk>
  static XINIT_HD void copy(T* to, const T* from, int& at, int end) {
    const auto move = [&] {
      __builtin_memcpy(to + at, from + at, chunk * sizeof(T));
      at += chunk;
    };
    if constexpr (chunk < kBlocks) {
      if ((at & chunk) != 0 && at + chunk <= end) move();
      copy<2 * chunk>(to, from, at, end);
      if (at + chunk <= end) move();
    } else {
      XINIT_UNROLL
      for (int i = 0; i < 4; ++i)
        if (at + chunk <= end) move();
    }
  }

  // ---- the current row ----

  struct Row {
    uint64_t start;                     // logical index,
    int64_t offset = 0;                 //   place in memory,
    int64_t at[Window::kMaxDims] = {};  //   and index in each dim

    XINIT_HD Row(const Window& window, uint64_t row) : start(window.base) {
      for (int i = 0; i < window.ndim; ++i) {
        const uint64_t size = static_cast<uint64_t>(window.dims[i].size);
        at[i] = static_cast<int64_t>(row % size);
        row /= size;
        start += static_cast<uint64_t>(at[i]) * window.dims[i].step;
        offset += at[i] * window.dims[i].stride;
      }
    }

    // Moves on by that many rows of dims[0], of which as many are left. Returns whether it came round to the first row.
    XINIT_HD bool skip(const Window& window, int64_t count) {
      for (int i = 0; i < window.ndim; ++i, count = 1) {
        const Dim& dim = window.dims[i];
        start += dim.step * static_cast<uint64_t>(count);
        offset += dim.stride * count;
        at[i] += count;
        if (at[i] < dim.size) return false;
        start -= dim.step * static_cast<uint64_t>(dim.size);
        offset -= dim.stride * dim.size;
        at[i] = 0;
      }
      return true;
    }
  };

  const Window window_;
  T* const out_;
  const uint64_t stream_;
  const Schedule keys_;
  const Distribution distribution_;
};

// Fills the units [begin, end) of a job. One for each instruction set; cpu/fill.cpp chooses.
using FillUnits = void (*)(const Fill& job, uint64_t begin, uint64_t end);

template <class L>
void fill_units(const Fill& job, uint64_t begin, uint64_t end) {
  specialize(job.distribution.kind, job.dtype,
             [&](auto kind, auto dtype) { FillLoop<L, kind.value, dtype.value>(job).run(begin, end); });
}

void fill_baseline(const Fill& job, uint64_t begin, uint64_t end);
void fill_avx2(const Fill& job, uint64_t begin, uint64_t end);
void fill_avx512(const Fill& job, uint64_t begin, uint64_t end);

}  // namespace xinit
