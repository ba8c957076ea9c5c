// The CPU's loop, one template for every instruction set. L names the lanes: see transforms.h, and here also
//   kLanes             floats in a vector, a multiple of four
//   W, multiply        64-bit lanes of Philox, half as many
//   merge(even, odd)   words of two W as one U: even lanes from the first, odd lanes from the second
//   interleave(x)      x[j] lane l  ->  x[l % 4] at 4 * (l / 4) + j: transposes each group of four lanes
//   store(out, x)      float, double, and the 16-bit types, rounded to nearest even
#pragma once

#include "../fill.h"
#include "../transforms.h"

namespace xinit {

// Generates blocks four words wide, kLanes at a time, and puts them where the window says. Whole tiles of a contiguous
// row go straight to memory. The rest (heads, tails, short and strided rows) share tiles with each other through a
// buffer.
template <class L, Kind kind, Dtype dtype>
class FillLoop {
  using F = typename L::F;
  using U = typename L::U;
  using W = typename L::W;
  using T = typename Element<dtype>::type;
  static constexpr int kBlocks = L::kLanes, kHalf = L::kLanes / 2;

 public:
  explicit FillLoop(const Fill& job)
      : window_(job.window),
        out_(static_cast<T*>(job.out)),
        stream_(job.key.stream),
        keys_(schedule(job.key.seed)),
        distribution_(job.distribution) {}

  // The units [begin, end) of the window.
  void run(uint64_t begin, uint64_t end) {
    if (window_.rows_first) {
      const uint64_t rows = static_cast<uint64_t>(window_.rows);
      uint64_t index = begin / rows;
      seek(begin % rows);
      for (uint64_t unit = begin; unit < end; ++unit) {
        push(row_unit(window_, start_, offset_, index));
        if (next_row()) ++index;
      }
    } else {
      const uint64_t per_row = static_cast<uint64_t>(window_.units_per_row);
      uint64_t index = begin % per_row;
      seek(begin / per_row);
      for (uint64_t unit = begin; unit < end;) {
        const uint64_t count = per_row - index < end - unit ? per_row - index : end - unit;
        row(index, count);
        unit += count;
        index = 0;
        next_row();
      }
    }
    flush();
  }

 private:
  // The part of the current row that lies in its units [index, index + count).
  void row(uint64_t index, uint64_t count) {
    const uint64_t end = index + count;
    if (window_.run_stride == 1) {
      if (index == 0 && start_ % 4 != 0) push(row_unit(window_, start_, offset_, index++));
      const uint64_t block = start_ / 4 + index, last = (start_ + static_cast<uint64_t>(window_.run)) / 4;
      const uint64_t whole = last < start_ / 4 + end ? last : start_ / 4 + end;
      if (whole > block && whole - block >= kBlocks) {
        const uint64_t tiles = (whole - block) / kBlocks;
        contiguous(block, tiles, out_ + offset_ + static_cast<int64_t>(block * 4 - start_));
        index += tiles * kBlocks;
      }
    }
    for (; index < end; ++index) push(row_unit(window_, start_, offset_, index));
  }

  void contiguous(uint64_t block, uint64_t tiles, T* out) {
    // Locals that no store can alias.
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    W even = lane_blocks(0) + block, odd = lane_blocks(1) + block;
    for (uint64_t i = 0; i < tiles; ++i, out += 4 * kBlocks) {
      tile(even, odd, keys, d, out);
      even += static_cast<uint64_t>(kBlocks);
      odd += static_cast<uint64_t>(kBlocks);
    }
  }

  XINIT_HD void tile(W even, W odd, const Schedule& keys, const Distribution& d, T* out) const {
    const W zero = even ^ even;
    W a[4] = {zero + stream_, zero + (stream_ >> 32), even, even >> 32};
    W b[4] = {zero + stream_, zero + (stream_ >> 32), odd, odd >> 32};
    philox4x32_10<L>(a, keys);
    philox4x32_10<L>(b, keys);
    const U words[4] = {L::merge(a[0], b[0]), L::merge(a[1], b[1]), L::merge(a[2], b[2]), L::merge(a[3], b[3])};
    F x[4];
    transform<kind, L>(words, x, d);
    L::interleave(x);
    XINIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      // The bounds are values of the dtype, so clamping before rounding to it is clamping after.
      if constexpr (kClamped<kind> && dtype != Dtype::kDouble)
        x[i] = L::min(L::max(x[i], L::splat(d.low)), L::splat(d.high));
      L::store(DtypeTag<dtype>{}, out + i * L::kLanes, x[i]);
    }
    if constexpr (kClamped<kind> && dtype == Dtype::kDouble)
      for (int i = 0; i < 4 * kBlocks; ++i)
        out[i] = out[i] < d.low_wide ? d.low_wide : out[i] > d.high_wide ? d.high_wide : out[i];
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

  void push(const Unit& unit) {
    if (unit.first >= unit.last) return;
    const int lane = lane_of(queued_);
    queue_[lane % 2][lane / 2] = unit.block;
    units_[queued_] = unit;
    if (++queued_ == kBlocks) flush();
  }

  void flush() {
    if (queued_ == 0) return;
    alignas(64) T buffer[4 * kBlocks];
    W even, odd;
    __builtin_memcpy(&even, queue_[0], sizeof even);
    __builtin_memcpy(&odd, queue_[1], sizeof odd);
    tile(even, odd, keys_, distribution_, buffer);
    for (int i = 0; i < queued_; ++i) {
      const Unit& unit = units_[i];
      T* to = out_ + unit.offset;
      const T* from = buffer + 4 * i;
      for (int j = unit.first; j < unit.last; ++j, to += window_.run_stride) *to = from[j];
    }
    queued_ = 0;
  }

  void seek(uint64_t row) {
    start_ = window_.base;
    offset_ = 0;
    for (int i = 0; i < window_.ndim; ++i) {
      const uint64_t size = static_cast<uint64_t>(window_.dims[i].size);
      at_[i] = static_cast<int64_t>(row % size);
      row /= size;
      start_ += static_cast<uint64_t>(at_[i]) * window_.dims[i].step;
      offset_ += at_[i] * window_.dims[i].stride;
    }
  }

  // Whether it came round to the first.
  bool next_row() {
    for (int i = 0; i < window_.ndim; ++i) {
      const Dim& dim = window_.dims[i];
      start_ += dim.step;
      offset_ += dim.stride;
      if (++at_[i] < dim.size) return false;
      start_ -= dim.step * static_cast<uint64_t>(dim.size);
      offset_ -= dim.stride * dim.size;
      at_[i] = 0;
    }
    return true;
  }

  const Window window_;
  T* const out_;
  const uint64_t stream_;
  const Schedule keys_;
  const Distribution distribution_;

  uint64_t start_ = 0;                 // of the current row: logical index,
  int64_t offset_ = 0;                 //   place in memory,
  int64_t at_[Window::kMaxDims] = {};  // and index in each dim

  int queued_ = 0;
  Unit units_[kBlocks];
  alignas(64) uint64_t queue_[2][kHalf] = {};
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
