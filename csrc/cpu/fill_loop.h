// The CPU's loop, one template for every instruction set. L names the lanes: see transforms.h, and here also
//   kLanes             floats in a vector, a multiple of four
//   W, multiply        64-bit lanes of Philox, half as many
//   merge(even, odd)   words of two W as one U: even lanes from the first, odd lanes from the second
//   at_least(x, bound) a bit for each lane of x >= bound, the first lane's lowest
//   interleave(x)      x[j] lane l  ->  x[l % 4] at 4 * (l / 4) + j: transposes each group of four lanes
//   zip(a, b, x, y)    lanes of the lower halves of a and b in turn, and of the upper halves
//   store(tag, out, x) float, double, the 16-bit types, and a float8 by its format, rounded to nearest even
#pragma once

#include <algorithm>

#include "../float8.h"
#include "abreast.h"

namespace xinit {

// Generates blocks four words wide, kLanes at a time: a tile. Along a row, tiles of consecutive blocks go straight to
// memory; the blocks before and after them are gathered from row to row into a batch. Across rows that are neighbours
// in memory, a tile takes one block of each. The loops have the tile inlined, call nothing, and use copies of the round
// keys and the distribution that no store can alias, so that these stay in registers.
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
      : window_(job.window), out_(static_cast<T*>(job.out)), stream_(job.key.stream), distribution_(drawn(job)) {
    const Schedule keys = schedule(job.key.seed);
    for (int i = 0; i < kRounds; ++i) {
      keys_.key0[i] = W{} + keys.key0[i];
      keys_.key1[i] = W{} + keys.key1[i];
    }
  }

  // The units [begin, end) of the window.
  void run(uint64_t begin, uint64_t end) const { window_.rows_first ? across(begin, end) : along(begin, end); }

 private:
  // What a store takes: of a float8, which one it is too.
  struct DistributionOfFloat8 : Distribution {
    Float8 format;
  };
  using Drawn = std::conditional_t<dtype == kFloat8, DistributionOfFloat8, Distribution>;
  static Drawn drawn(const Fill& job) {
    if constexpr (dtype == kFloat8)
      return {job.distribution, Float8::of(job.dtype)};
    else
      return job.distribution;
  }

  // ---- places ----

  struct CurrentRow : Row {
    int64_t at[Window::kMaxDims] = {};  // in each dim

    XINIT_HD CurrentRow(const Window& window, uint64_t row) : Row{} {
      static_cast<Row&>(*this) = row_at(window, row, at);
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

  // A row's blocks, and its words counted from the first block's first: [phase, stop).
  struct RowBlocks {
    uint64_t first;
    int64_t phase, stop, count;
    int64_t start, stride;  // memory

    XINIT_HD RowBlocks(const Window& window, const CurrentRow& row)
        : first(row.start / 4),
          phase(static_cast<int64_t>(row.start % 4)),
          stop(phase + window.run),
          count((stop + 3) / 4),
          start(row.offset),
          stride(window.run_stride) {}
    // Where a word goes.
    XINIT_HD int64_t offset(int64_t word) const { return start + (word - phase) * stride; }
  };

  // Where `along` is: at a row, and within it at tiles of consecutive blocks, if there are any left of it.
  struct Walk {
    CurrentRow row;       // whose blocks are next,
    int64_t index, left;  //   from that one on, and units from there to the end
    int64_t tiles = 0;
    uint64_t block = 0;  // the next tile's first
    T* out = nullptr;
    int wanted = 0;  // words of the last tile

    Walk(const Window& window, uint64_t unit, uint64_t end)
        : row(window, unit / static_cast<uint64_t>(window.units_per_row)),
          index(static_cast<int64_t>(unit % static_cast<uint64_t>(window.units_per_row))),
          left(static_cast<int64_t>(end - unit)) {}
  };

  // Blocks in any order, each of which lies in one row. They are generated one after the other, then copied piece by
  // piece.
  struct Batch {
    static constexpr int kMost = 256, kMostPieces = 64;
    struct Piece {
      T* to;
      int at, count;  // words of the batch
    };
    int blocks = 0, pieces = 0;
    Piece piece[kMostPieces];
    uint64_t block[kMost + 2 * kBlocks];  // with what the last tile reads beyond, and the one after it

    // For what may come before and after a row's tiles.
    XINIT_HD bool has_room() const { return blocks + 2 * kBlocks <= kMost && pieces + 2 <= kMostPieces; }

    // `number` consecutive blocks, of which `count` words are wanted after those that are skipped. Written a vector at
    // a time: what stands beyond is overwritten by the next call.
    XINIT_HD void add(uint64_t first, int64_t number, int64_t skipped, int64_t count, T* to) {
      piece[pieces++] = {to, static_cast<int>(4 * blocks + skipped), static_cast<int>(count)};
      W next = {};
      for (int i = 0; i < kBlocks / 2; ++i) next[i] = static_cast<uint64_t>(i);
      next += first;
      for (int64_t i = 0; i < number; i += kBlocks / 2, next += static_cast<uint64_t>(kBlocks / 2))
        __builtin_memcpy(block + blocks + i, &next, sizeof next);
      blocks += static_cast<int>(number);
    }
    XINIT_HD void add(const RowBlocks& row, int64_t begin, int64_t end, T* out) {
      const int64_t from = std::max(4 * begin, row.phase), to = std::min(4 * end, row.stop);
      add(row.first + static_cast<uint64_t>(begin), end - begin, from - 4 * begin, to - from, out + row.offset(from));
    }
  };

  // Tails of a truncated normal: every sixth tile has one, and a branch to it would be mispredicted as often. So tiles
  // that go straight to memory are filled as if they had none, and noted, for those blocks to be filled again.
  struct Notes {
    static constexpr int kMost = 32;
    struct Note {
      uint64_t block;  // the tile's first,
      T* out;          //   where it goes,
      int wanted;      //   how many of its words,
      uint32_t lanes;  //   and which blocks have a tail in them
    };
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

  // Of all rounds, in all lanes: in a loop with as much else in it as here, compilers broadcast them at each use.
  struct Keys {
    W key0[kRounds], key1[kRounds];
  };

  // ---- row after row ----

  void along(uint64_t unit, uint64_t end) const {
    Walk walk(window_, unit, end);
    Batch batch;
    Notes notes;
    while (walk.left > 0 || walk.tiles > 0) {
      straight(walk, batch, notes);
      gather(notes, batch);
      if (!batch.has_room()) fill(batch);
    }
    if (batch.blocks > 0) fill(batch);
  }

  // Fills tiles that go straight to memory, until there are none left, or no room for what does not.
  __attribute__((noinline)) void straight(Walk& place, Batch& batch, Notes& notes) const {
    const Keys keys = keys_;
    const Drawn d = distribution_;
    Walk walk = place;
    if (walk.tiles == 0) advance(walk, batch);
    U next[4];
    if constexpr (kAhead) words(consecutive(walk.block), keys, next);
    while (walk.tiles > 0 && notes.count < Notes::kMost) {
      const uint64_t block = walk.block;
      T* const out = walk.out;
      const int wanted = walk.tiles == 1 ? walk.wanted : kTile;
      if constexpr (!kAhead) words(consecutive(block), keys, next);
      const U w[4] = {next[0], next[1], next[2], next[3]};
      if (--walk.tiles > 0) {
        walk.block += kBlocks;
        walk.out += kTile;
      } else {
        advance(walk, batch);
      }
      if constexpr (kAhead) words(consecutive(walk.block), keys, next);
      F x[4];
      NoteTails tails;
      shape(w, d, x, tails);
      L::interleave(x);
      XINIT_UNROLL
      for (int i = 0; i < 3; ++i) store(x[i], d, out + i * L::kLanes);
      if (wanted == kTile)
        store(x[3], d, out + 3 * L::kLanes);
      else
        store_part(x[3], d, out + 3 * L::kLanes, wanted - 3 * L::kLanes);
      if constexpr (kind == Kind::kTruncated) {
        notes.note[notes.count] = {block, out, wanted, tails.lanes};
        notes.count += tails.lanes != 0;
      }
    }
    place = walk;
  }

  // To the next tiles. The blocks between go to the batch.
  XINIT_HD void advance(Walk& walk, Batch& batch) const {
    while (walk.left > 0 && batch.has_room()) {
      const RowBlocks row(window_, walk.row);
      const int64_t begin = walk.index, stop = std::min(begin + walk.left, row.count);
      // The first block may begin before the row, where nobody may write; of the last one, words can be left out.
      const int64_t first = std::max<int64_t>(begin, row.phase != 0);
      const int64_t tiles = window_.run_stride == 1 ? (stop - first) / kBlocks : 0;
      if (tiles <= 0) {
        const int64_t end = std::min(stop, begin + Batch::kMost - batch.blocks);
        if (begin < end) batch.add(row, begin, end, out_);
        if (end < stop) {
          walk.left -= end - begin;
          walk.index = end;
          return;
        }
      } else {
        const int64_t last = first + tiles * kBlocks;
        if (begin < first) batch.add(row.first, 1, row.phase, 4 - row.phase, out_ + row.start);
        if (last < stop) batch.add(row, last, stop, out_);
        walk.block = row.first + static_cast<uint64_t>(first);
        walk.out = out_ + row.offset(4 * first);
        walk.tiles = tiles;
        walk.wanted = static_cast<int>(std::min(4 * last, row.stop) - 4 * (last - kBlocks));
      }
      walk.left -= window_.units_per_row - begin;
      walk.index = 0;
      walk.row.skip(window_, 1);
      if (tiles > 0) return;
    }
  }

  // ---- block after block, each through all rows: the rows are nearer to each other in memory than their elements ----

  void across(uint64_t unit, uint64_t end) const {
    const Keys keys = keys_;
    const Drawn d = distribution_;
    const uint64_t rows = static_cast<uint64_t>(window_.rows);
    const Dim& rung = window_.dims[0];
    uint64_t index = unit / rows;
    CurrentRow row(window_, unit % rows);
    Batch batch;
    while (unit < end) {
      const Unit at = row_unit(window_, row.start, row.offset, index);
      if (rung.stride == 1 && rung.step % 4 == 0 && at.first == 0 && at.last == 4 && end - unit >= kBlocks &&
          rung.size - row.at[0] >= kBlocks) {
        // One block of each of kBlocks rows, lanes in the order of rows: a store for each of its four words.
        const uint64_t step = rung.step / 4;
        U w[4];
        words({at.block + row_lanes(0) * step, at.block + row_lanes(1) * step}, keys, w);
        F x[4];
        MendTails tails;
        shape(w, d, x, tails);
        XINIT_UNROLL
        for (int i = 0; i < 4; ++i) store(x[i], d, out_ + at.offset + i * window_.run_stride);
        unit += kBlocks;
        if (row.skip(window_, kBlocks)) ++index;
      } else {
        if (at.first < at.last) batch.add(at.block, 1, at.first, at.last - at.first, out_ + at.offset);
        if (!batch.has_room()) fill(batch);
        ++unit;
        if (row.skip(window_, 1)) ++index;
      }
    }
    if (batch.blocks > 0) fill(batch);
  }

  // ---- tiles ----

  // A tile's block numbers.
  struct Lanes {
    W even, odd;
  };

  // The words of the blocks: w[i] holds the i-th of each.
  XINIT_HD void words(const Lanes& blocks, const Keys& keys, U (&w)[4]) const {
    using Two = Abreast<L, 2>;
    const W even = blocks.even, odd = blocks.odd, zero = even ^ even, low = zero + stream_,
            high = zero + (stream_ >> 32);
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

  // A vector of values to memory.
  static XINIT_HD void store(F x, const Drawn& d, T* out) {
    // The bounds are values of the dtype, so clamping before rounding to it is clamping after.
    if constexpr (kClamped<kind> && dtype != Dtype::kDouble) x = L::max(x, L::splat(d.low));
    if constexpr (kTopped<kind> && dtype != Dtype::kDouble && dtype != Dtype::kFloat)
      x = L::select(x < L::splat(d.top), x, L::splat(d.high));
    else if constexpr (kClamped<kind> && dtype != Dtype::kDouble)
      x = L::min(x, L::splat(d.high));
    if constexpr (dtype == kFloat8)
      L::store(d.format, out, x);
    else
      L::store(DtypeTag<dtype>{}, out, x);
    if constexpr (kClamped<kind> && dtype == Dtype::kDouble)
      for (int i = 0; i < L::kLanes; ++i) {
        const double raised = out[i] > d.low_wide ? out[i] : d.low_wide;
        out[i] = raised < d.high_wide ? raised : d.high_wide;
      }
  }

  // Of its values all but at most three.
  static XINIT_HD void store_part(F x, const Drawn& d, T* out, int count) {
    alignas(64) T all[L::kLanes];
    store(x, d, all);
    if constexpr (L::kLanes > 4) {
      // Four at a time: processors forward a store to a load that lies in one part of it; another waits for memory.
      XINIT_UNROLL
      for (int i = 0; i < L::kLanes - 4; i += 4) __builtin_memcpy(out + i, all + i, 4 * sizeof(T));
      __builtin_memcpy(out + count - 4, all + count - 4, 4 * sizeof(T));
    } else {
      for (int i = 0; i < count; ++i) out[i] = all[i];
    }
  }

  // Lane l takes the block that interleave puts at 4 * place in memory; even lanes are in the first W, odd in the
  // second.
  static constexpr int lane_of(int place) { return 4 * (place % (kBlocks / 4)) + place / (kBlocks / 4); }
  static constexpr int place_of(int lane) { return kBlocks / 4 * (lane % 4) + lane / 4; }  // its inverse

  // Consecutive blocks from that one.
  static XINIT_HD Lanes consecutive(uint64_t block) {
    Lanes blocks = {};
    for (int place = 0; place < kBlocks; ++place)
      (lane_of(place) % 2 == 0 ? blocks.even : blocks.odd)[lane_of(place) / 2] = static_cast<uint64_t>(place);
    return {blocks.even + block, blocks.odd + block};
  }

  // The blocks of a list.
  static XINIT_HD Lanes listed(const uint64_t* block) {
    W low, high;
    __builtin_memcpy(&low, block, sizeof low);
    __builtin_memcpy(&high, block + kBlocks / 2, sizeof high);
    Lanes lanes;
    L::zip(low, high, lanes.even, lanes.odd);
    return lanes;
  }

  static XINIT_HD W row_lanes(int odd) {
    W rows = {};
    for (int i = 0; i < kBlocks / 2; ++i) rows[i] = static_cast<uint64_t>(2 * i + odd);
    return rows;
  }

  // ---- batches ----

  // Fills and empties it.
  __attribute__((noinline)) void fill(Batch& batch) const {
    const Keys keys = keys_;
    const Drawn d = distribution_;
    alignas(64) T buffer[4 * Batch::kMost];
    for (int i = 0; i < 2 * kBlocks; ++i) batch.block[batch.blocks + i] = 0;
    const uint64_t* block = batch.block;
    U next[4];
    if constexpr (kAhead) words(listed(block), keys, next);
    for (T *out = buffer, *end = buffer + 4 * batch.blocks; out < end; out += kTile) {
      if constexpr (!kAhead) words(listed(block), keys, next);
      const U w[4] = {next[0], next[1], next[2], next[3]};
      block += kBlocks;
      if constexpr (kAhead) words(listed(block), keys, next);
      F x[4];
      MendTails tails;
      shape(w, d, x, tails);
      L::interleave(x);
      XINIT_UNROLL
      for (int i = 0; i < 4; ++i) store(x[i], d, out + i * L::kLanes);
    }
    const int64_t stride = window_.run_stride;
    for (int i = 0; i < batch.pieces; ++i) {
      const auto [to, at, count] = batch.piece[i];
      const T* const from = buffer + at;
      if (stride == 1 && count >= 4) {
        copy<L::kLanes>(to, from, count);
      } else {
        XINIT_UNROLL
        for (int j = 0; j < count; ++j) to[j * stride] = from[j];
      }
    }
    batch.blocks = batch.pieces = 0;
  }

  // Four elements or more; the last chunk overlaps the one before. A call of the C library costs as much as what it
  // copies here.
  template <int chunk>
  static XINIT_HD void copy(T* to, const T* from, int64_t count) {
    if (count >= chunk) {
      for (int64_t i = 0; i + chunk <= count; i += chunk) __builtin_memcpy(to + i, from + i, chunk * sizeof(T));
      __builtin_memcpy(to + count - chunk, from + count - chunk, chunk * sizeof(T));
    } else if constexpr (chunk > 4) {
      copy<chunk / 2>(to, from, count);
    }
  }

  // Adds the blocks with tails to a batch.
  __attribute__((noinline)) void gather(Notes& notes, Batch& batch) const {
    for (int i = 0; i < notes.count; ++i) {
      const auto [block, out, wanted, noted] = notes.note[i];
      for (uint32_t lanes = noted; lanes != 0; lanes &= lanes - 1) {
        if (!batch.has_room()) fill(batch);
        const int place = place_of(__builtin_ctz(lanes));
        batch.add(block + static_cast<uint64_t>(place), 1, 0, std::min(4, wanted - 4 * place), out + 4 * place);
      }
    }
    notes.count = 0;
  }

  const Window window_;
  T* const out_;
  const uint64_t stream_;
  Keys keys_;
  const Drawn distribution_;
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
