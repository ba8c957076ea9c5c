// The CPU's loop, one template for every instruction set. L names the lanes: see transforms.h, and here also
//   kLanes             floats in a vector, a multiple of four
//   W, multiply        64-bit lanes of Philox, half as many
//   merge(even, odd)   words of two W as one U: even lanes from the first, odd lanes from the second
//   at_least(x, bound) a bit for each lane of x >= bound, the first lane's lowest
//   interleave(x)      x[j] lane l  ->  x[l % 4] at 4 * (l / 4) + j: transposes each group of four lanes
//   store(out, x)      float, double, and the 16-bit types, rounded to nearest even
#pragma once

#include <algorithm>

#include "../fill.h"
#include "../transforms.h"
#include "abreast.h"

namespace xinit {

// Generates blocks four words wide, kLanes at a time: a tile. Along long rows most tiles go straight to memory; along
// short ones a tile takes the blocks as they come, row after row, and its pieces are copied; across rows that are
// neighbours in memory a tile takes one block of each. The loops have the tile inlined, and copies of the round keys
// and the distribution that no store can alias, so that these stay in registers from row to row.
template <class L, Kind kind, Dtype dtype>
class FillLoop {
  using F = typename L::F;
  using U = typename L::U;
  using W = typename L::W;
  using T = typename Element<dtype>::type;
  static constexpr int kBlocks = L::kLanes, kTile = 4 * kBlocks;
  // Whether the words of the next tile are made while one is shaped: neither fills the pipeline alone. Of a uniform
  // there is little to shape.
  static constexpr bool kAhead = kind != Kind::kUniform && kind != Kind::kUniformClamped;

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
    else if (window_.run_stride == 1 && window_.run >= 4 * kTile)
      along_long(begin, end);
    else
      along(begin, end);
  }

 private:
  // ---- row after row ----

  void along_long(uint64_t unit, uint64_t end) const {
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    const int64_t per_row = window_.units_per_row;
    int64_t index = static_cast<int64_t>(unit % static_cast<uint64_t>(per_row)),
            left = static_cast<int64_t>(end - unit);
    CurrentRow row(window_, unit / static_cast<uint64_t>(per_row));
    Tile rest;
    Notes notes;
    for (; left > 0; index = 0, row.skip(window_, 1)) {
      const RowBlocks blocks(window_, row);
      const int64_t stop = std::min(index + left, blocks.count);
      left -= per_row - index;
      // Blocks without a head that belongs to nobody; then whole tiles; then what is left.
      const int64_t first = std::max<int64_t>(index, blocks.phase != 0);
      const int64_t tiles = std::max<int64_t>(0, std::min(stop, blocks.whole) - first) / kBlocks;
      queue(rest, blocks, index, std::min(first, stop));
      uint64_t block = blocks.first + static_cast<uint64_t>(first);
      T* out = out_ + blocks.offset(4 * first);
      W even = lane_blocks(0) + block, odd = lane_blocks(1) + block;
      U next[4];
      if constexpr (kAhead) words(even, odd, keys, next);
      for (const T* const last = out + tiles * kTile; out != last; out += kTile, block += kBlocks) {
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
          notes.note[notes.count] = {block, out - out_, tails.lanes};
          notes.count += tails.lanes != 0;
          if (notes.count == Notes::kMost) mend(notes);
        }
      }
      queue(rest, blocks, std::min(first + tiles * kBlocks, stop), stop);
    }
    if (notes.count > 0) mend(notes);
    if (rest.blocks > 0) fill_rest(rest);
  }

  void along(uint64_t unit, uint64_t end) const {
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    const int64_t per_row = window_.units_per_row;
    int64_t index = static_cast<int64_t>(unit % static_cast<uint64_t>(per_row)),
            left = static_cast<int64_t>(end - unit);
    CurrentRow row(window_, unit / static_cast<uint64_t>(per_row));
    while (left > 0) {
      Tile tile;
      do {
        const RowBlocks blocks(window_, row);
        const int64_t count = std::min(std::min<int64_t>(kBlocks - tile.blocks, blocks.count - index), left);
        if (count > 0) {
          tile.add(blocks, index, count);
          index += count;
          left -= count;
        }
        if (index >= blocks.count) {
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
    CurrentRow row(window_, unit % rows);
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
        if (tile.blocks == kBlocks) fill(tile, keys, d);
        ++unit;
        if (row.skip(window_, 1)) ++index;
      }
    }
    if (tile.blocks > 0) fill(tile, keys, d);
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

  // ---- the current row ----

  struct CurrentRow {
    uint64_t start;                     // logical index,
    int64_t offset = 0;                 //   place in memory,
    int64_t at[Window::kMaxDims] = {};  //   and index in each dim

    XINIT_HD CurrentRow(const Window& window, uint64_t row) : start(window.base) {
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

  // ---- tiles whose blocks are consecutive in places only ----

  // A row's blocks, and its words counted from the first block's first: [phase, stop).
  struct RowBlocks {
    uint64_t first;
    int64_t phase, stop, count, whole;  // of the blocks, those before `whole` end in the row
    int64_t start, stride;              // memory

    XINIT_HD RowBlocks(const Window& window, const CurrentRow& row)
        : first(row.start / 4),
          phase(static_cast<int64_t>(row.start % 4)),
          stop(phase + window.run),
          count((stop + 3) / 4),
          whole(stop / 4),
          start(row.offset),
          stride(window.run_stride) {}
    // Where a word goes.
    XINIT_HD int64_t offset(int64_t word) const { return start + (word - phase) * stride; }
  };

  struct Piece {
    int at, count;   // elements of the tile
    int64_t offset;  // of the first in memory
  };

  struct Tile {
    int blocks = 0, pieces = 0;
    Piece piece[kBlocks];
    W even = {}, odd = {};

    // Consecutive blocks take the next places; what stands beyond is overwritten by the next call. `count` of their
    // elements are wanted, after those that are skipped.
    XINIT_HD void add(uint64_t block, int number, int skipped, int count, int64_t offset) {
      const W evens = lane_blocks(0), odds = lane_blocks(1);
      if (blocks == 0) {
        even = evens + block;
        odd = odds + block;
      } else {
        const uint64_t place = static_cast<uint64_t>(blocks);
        even = evens >= place ? evens + (block - place) : even;
        odd = odds >= place ? odds + (block - place) : odd;
      }
      piece[pieces++] = {4 * blocks + skipped, count, offset};
      blocks += number;
    }
    XINIT_HD void add(const RowBlocks& row, int64_t index, int64_t number) {
      const int64_t from = std::max(4 * index, row.phase), to = std::min(4 * (index + number), row.stop);
      add(row.first + static_cast<uint64_t>(index), static_cast<int>(number), static_cast<int>(from - 4 * index),
          static_cast<int>(to - from), row.offset(from));
    }
  };

  // Fills and empties it.
  XINIT_HD void fill(Tile& tile, const Schedule& keys, const Distribution& d) const {
    const int64_t stride = window_.run_stride;
    F x[4];
    values(tile.even, tile.odd, keys, d, x);
    L::interleave(x);
    if (tile.pieces == 1 && tile.piece[0].count == kTile && stride == 1) {
      store_tile(x, d, out_ + tile.piece[0].offset, L::kLanes);
    } else {
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
    tile.blocks = tile.pieces = 0;
  }

  // Once more, not inlined, for all that are rarely filled.
  __attribute__((noinline)) void fill_rest(Tile& tile) const {
    const Schedule keys = keys_;
    const Distribution d = distribution_;
    fill(tile, keys, d);
  }

  // Adds a row's blocks [index, stop) to a tile that is filled whenever it is full.
  XINIT_HD void queue(Tile& tile, const RowBlocks& row, int64_t index, int64_t stop) const {
    while (index < stop) {
      const int64_t count = std::min<int64_t>(kBlocks - tile.blocks, stop - index);
      tile.add(row, index, count);
      index += count;
      if (tile.blocks == kBlocks) fill_rest(tile);
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

  // ---- tails of a truncated normal: every sixth tile has one, and a branch to it would be mispredicted as often. So
  // whole tiles are filled as if they had none, and the blocks that do are noted, to be filled again afterwards ----

  struct Notes {
    struct Note {
      uint64_t block;  // the tile's first,
      int64_t offset;  //   where it goes,
      uint32_t lanes;  //   and which blocks have a tail in them
    };
    static constexpr int kMost = 16;
    int count = 0;
    Note note[kMost];
  };

  struct NoteTails {
    uint32_t lanes = 0;
    template <class Wide>
    XINIT_HD void mend(const typename Wide::F (&x)[1], const typename Wide::F (&)[1]) {
      lanes = L::at_least(greatest<L>(x[0].v), kFirstTail);
    }
  };

  __attribute__((noinline)) void mend(Notes& notes) const {
    Tile tile;
    for (int i = 0; i < notes.count; ++i)
      for (uint32_t lanes = notes.note[i].lanes; lanes != 0; lanes &= lanes - 1) {
        const int place = place_of(__builtin_ctz(lanes));
        tile.add(notes.note[i].block + static_cast<uint64_t>(place), 1, 0, 4, notes.note[i].offset + 4 * place);
        if (tile.blocks == kBlocks) fill_rest(tile);
      }
    if (tile.blocks > 0) fill_rest(tile);
    notes.count = 0;
  }

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
