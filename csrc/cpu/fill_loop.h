// The CPU's loop, one template for every instruction set. L names the lanes: see transforms.h, and here also
//   kLanes             floats in a vector, a multiple of four
//   W, multiply        64-bit lanes of Philox, half as many
//   merge(even, odd)   words of two W as one U: even lanes from the first, odd lanes from the second
//   at_least(x, bound) a bit for each lane of x >= bound, the first lane's lowest
//   interleave(x)      x[j] lane l  ->  x[l % 4] at 4 * (l / 4) + j: transposes each group of four lanes
//   store(out, x)      float, double, and the 16-bit types, rounded to nearest even
#pragma once

#include "../fill.h"
#include "../transforms.h"
#include "abreast.h"

namespace xinit {

// Generates blocks four words wide, kLanes at a time, and puts them where the window says. Whole tiles of a contiguous
// row go straight to memory, and so do those of neighbouring rows that lie across it. The rest (heads, tails, short and
// strided rows) share tiles with each other through a buffer. The loops over rows have the tile inlined, and copies of
// the round keys and the distribution that no store can alias, so that these stay in registers from row to row.
template <class L, Kind kind, Dtype dtype>
class FillLoop {
  using F = typename L::F;
  using U = typename L::U;
  using W = typename L::W;
  using T = typename Element<dtype>::type;
  static constexpr int kBlocks = L::kLanes;
  // Whether a row's loop makes the words of the next tile while it shapes one: neither fills the pipeline alone. Of a
  // uniform there is little to shape, and a short row would pay for words that it does not use.
  static constexpr bool kAhead = kind != Kind::kUniform && kind != Kind::kUniformClamped;

 public:
  explicit FillLoop(const Fill& job)
      : window_(job.window),
        out_(static_cast<T*>(job.out)),
        stream_(job.key.stream),
        keys_(schedule(job.key.seed)),
        distribution_(job.distribution) {}

  // The units [begin, end) of the window.
  void run(uint64_t begin, uint64_t end) {
    if (window_.rows_first)
      across(begin, end);
    else
      along(begin, end);
    flush();
  }

 private:
  // ---- row after row ----

  void along(uint64_t unit, uint64_t end) {
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    const uint64_t per_row = static_cast<uint64_t>(window_.units_per_row), run = static_cast<uint64_t>(window_.run);
    uint64_t index = unit % per_row;
    seek(unit / per_row);
    Note notes[kNotes];
    int note_count = 0;
    while (unit < end) {
      // The part of the row in its units [index, stop): elements [from, to) of the row, blocks from `block` on.
      const uint64_t stop = index + (end - unit) < per_row ? index + (end - unit) : per_row;
      unit += stop - index;
      uint64_t block = start_ / 4 + index;
      uint64_t from = block * 4 > start_ ? block * 4 - start_ : 0;
      const uint64_t last = (start_ / 4 + stop) * 4 - start_, to = last < run ? last : run;
      const uint64_t phase = (start_ + from) % 4, head = phase == 0 ? 0 : 4 - phase;
      if (window_.run_stride == 1 && from + head + 4 * kBlocks <= to) {
        if (head != 0) block += push(block, from, head, to);
        from = block * 4 - start_;
        W even = lane_blocks(0) + block, odd = lane_blocks(1) + block;
        U next[4];
        if constexpr (kAhead) words(even, odd, keys, next);
        T* out = out_ + offset_ + static_cast<int64_t>(from);
        for (; from + 4 * kBlocks <= to; from += 4 * kBlocks, block += kBlocks, out += 4 * kBlocks) {
          if constexpr (!kAhead) words(even, odd, keys, next);
          const U w[4] = {next[0], next[1], next[2], next[3]};
          even += static_cast<uint64_t>(kBlocks);
          odd += static_cast<uint64_t>(kBlocks);
          if constexpr (kAhead) words(even, odd, keys, next);
          F x[4];
          NoteTails tails;
          shape(w, d, x, tails);
          L::interleave(x);
          store_tile(x, d, out, L::kLanes);
          if constexpr (kind == Kind::kTruncated) {
            notes[note_count] = {block, tails.lanes};
            note_count += tails.lanes != 0;
            if (note_count == kNotes) mend(notes, note_count);
          }
        }
        if (note_count != 0) mend(notes, note_count);
      }
      while (from < to) {
        block += push(block, from, 4 * static_cast<uint64_t>(kBlocks - queued_) - (start_ + from) % 4, to);
        from = block * 4 - start_;
      }
      index = 0;
      next_row();
    }
  }

  // ---- tails of a truncated normal: every sixth tile has one, and a branch to it would be mispredicted as often. So
  // the tile is filled as if it had none, and the blocks that do are noted, to go through the queue afterwards ----

  struct Note {
    uint64_t block;  // the tile's first
    uint32_t lanes;  // those with a tail in them
  };
  static constexpr int kNotes = 16;

  struct NoteTails {
    uint32_t lanes = 0;
    template <class Wide>
    XINIT_HD void mend(const typename Wide::F (&x)[1], const typename Wide::F (&)[1]) {
      lanes = L::at_least(greatest<L>(x[0].v), kFirstTail);
    }
  };

  __attribute__((noinline)) void mend(const Note (&notes)[kNotes], int& count) {
    for (int i = 0; i < count; ++i)
      for (uint32_t lanes = notes[i].lanes; lanes != 0; lanes &= lanes - 1) {
        const uint64_t block = notes[i].block + static_cast<uint64_t>(place_of(__builtin_ctz(lanes)));
        const uint64_t from = block * 4 - start_;
        push(block, from, 4, from + 4);
      }
    count = 0;
  }

  // ---- block after block, each through all rows: the rows are nearer to each other in memory than their elements ----

  void across(uint64_t unit, uint64_t end) {
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    const uint64_t rows = static_cast<uint64_t>(window_.rows);
    const Dim& rung = window_.dims[0];
    uint64_t index = unit / rows;
    seek(unit % rows);
    while (unit < end) {
      const Unit at = row_unit(window_, start_, offset_, index);
      if (rung.stride == 1 && rung.step % 4 == 0 && at.first == 0 && at.last == 4 && end - unit >= kBlocks &&
          rung.size - at_[0] >= kBlocks) {
        // One block of each of kBlocks rows, lanes in the order of rows: a store for each of its four words.
        F x[4];
        const uint64_t step = rung.step / 4;
        values(at.block + row_lanes(0) * step, at.block + row_lanes(1) * step, keys, d, x);
        store_tile(x, d, out_ + at.offset, window_.run_stride);
        unit += kBlocks;
        if (skip_rows(kBlocks)) ++index;
      } else {
        if (at.first < at.last) push_unit(at);
        ++unit;
        if (next_row()) ++index;
      }
    }
  }

  // ---- tiles ----

  // The words of the blocks in even and odd lanes: w[i] holds the i-th of each.
  XINIT_HD void words(W even, W odd, const Schedule& keys, U (&w)[4]) const {
    using Two = Abreast<L, 2>;
    const W zero = even ^ even, low = zero + stream_, high = zero + (stream_ >> 32);
    typename Two::W c[4] = {{low, low}, {high, high}, {even, odd}, {even >> 32, odd >> 32}};
    philox4x32_10<Two>(c, keys);
    XINIT_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = L::merge(c[i].v[0], c[i].v[1]);
  }

  // From words to values, all four vectors abreast.
  template <class Tails>
  static XINIT_HD void shape(const U (&w)[4], const Distribution& d, F (&x)[4], Tails& tails) {
    constexpr int n = kind == Kind::kNormal ? 2 : 1;  // words that make a sample together
    using Wide = Abreast<L, 4 / n>;
    typename Wide::U words[n];
    typename Wide::F samples[n];
    XINIT_UNROLL
    for (int i = 0; i < 4; ++i) words[i % n].v[i / n] = w[i];
    transform<kind, Wide>(words, samples, d, tails);
    XINIT_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = samples[i % n].v[i / n];
  }

  XINIT_HD void values(W even, W odd, const Schedule& keys, const Distribution& d, F (&x)[4]) const {
    U w[4];
    words(even, odd, keys, w);
    MendTails tails;
    shape(w, d, x, tails);
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
  static constexpr int place_of(int lane) { return kBlocks / 4 * (lane % 4) + lane / 4; }  // its inverse

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

  // ---- the queue: blocks that share a tile, and the pieces of it to copy out ----

  struct Piece {
    int at, count;   // elements of the buffer
    int64_t offset;  // of the first in memory
  };

  // Queues `count` elements of the row from element `from` on, none beyond `to`, which begin in `block` and fit into
  // what is left of the tile. Returns the number of blocks done with.
  XINIT_HD uint64_t push(uint64_t block, uint64_t from, uint64_t count, uint64_t to) {
    const int first = static_cast<int>((start_ + from) % 4);
    if (count > to - from) count = to - from;
    const int blocks = (first + static_cast<int>(count) + 3) / 4;
    pieces_[piece_count_++] = {4 * queued_ + first, static_cast<int>(count),
                               offset_ + static_cast<int64_t>(from) * window_.run_stride};
    enqueue(block, blocks);
    if (queued_ == kBlocks) flush();
    return static_cast<uint64_t>(blocks);
  }

  XINIT_HD void push_unit(const Unit& unit) {
    pieces_[piece_count_++] = {4 * queued_ + unit.first, unit.last - unit.first, unit.offset};
    enqueue(unit.block, 1);
    if (queued_ == kBlocks) flush();
  }

  // Consecutive blocks take the next places; what stands beyond is overwritten by the next call. In vectors: a load of
  // what single stores have just written would wait for them.
  XINIT_HD void enqueue(uint64_t block, int count) {
    const W even = lane_blocks(0), odd = lane_blocks(1);
    const uint64_t place = static_cast<uint64_t>(queued_);
    even_ = even >= place ? even + (block - place) : even_;
    odd_ = odd >= place ? odd + (block - place) : odd_;
    queued_ += count;
  }

  // Not inlined: one more copy of the tile, for all callers.
  __attribute__((noinline)) void flush() {
    if (queued_ == 0) return;
    alignas(64) T buffer[4 * kBlocks];
    F x[4];
    values(even_, odd_, keys_, distribution_, x);
    L::interleave(x);
    store_tile(x, distribution_, buffer, L::kLanes);
    for (int i = 0; i < piece_count_; ++i) {
      const Piece piece = pieces_[i];
      const T* from = buffer + piece.at;
      T* to = out_ + piece.offset;
      if (window_.run_stride == 1)
        copy(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from),
             piece.count * static_cast<int>(sizeof(T)));
      else
        for (int j = 0; j < piece.count; ++j, to += window_.run_stride) *to = from[j];
    }
    queued_ = 0;
    piece_count_ = 0;
  }

  // A few vectors, the last one overlapping: a call of the C library costs as much as what it copies here.
  static XINIT_HD void copy(char* to, const char* from, int bytes) {
    constexpr int kWide = sizeof(F);
    if (bytes < kWide) {
      for (int i = 0; i < bytes; i += static_cast<int>(sizeof(T))) __builtin_memcpy(to + i, from + i, sizeof(T));
      return;
    }
    for (int i = 0; i + kWide <= bytes; i += kWide) __builtin_memcpy(to + i, from + i, kWide);
    __builtin_memcpy(to + bytes - kWide, from + bytes - kWide, kWide);
  }

  // ---- the current row ----

  XINIT_HD void seek(uint64_t row) {
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

  XINIT_HD bool next_row() { return skip_rows(1); }

  // Moves on by that many rows of dims[0], of which as many are left. Returns whether it came round to the first row.
  XINIT_HD bool skip_rows(int64_t count) {
    for (int i = 0; i < window_.ndim; ++i, count = 1) {
      const Dim& dim = window_.dims[i];
      start_ += dim.step * static_cast<uint64_t>(count);
      offset_ += dim.stride * count;
      at_[i] += count;
      if (at_[i] < dim.size) return false;
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
  int64_t at_[Window::kMaxDims] = {};  //   and index in each dim

  int queued_ = 0, piece_count_ = 0;
  Piece pieces_[kBlocks];
  W even_ = {}, odd_ = {};
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
