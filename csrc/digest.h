// A digest that shards can share out: the sum modulo 2^64, over the elements, of a hash of key, logical index and bits.
// Sums do not care about order, so it is the same on any device, in any layout, by any number of threads; and a
// tensor's is the sum of its parts'. Two sums, 128 bits: enough to tell weights apart, not to withstand an adversary.
#pragma once

#include "fill.h"

namespace xinit {

struct Digest {
  uint64_t low = 0, high = 0;
  XINIT_HD Digest& operator+=(Digest other) {
    low += other.low;
    high += other.high;
    return *this;
  }
};

// The words of the key's first block, and the dtype: the same bits of another dtype, or of a complex tensor's real
// view, are another value.
struct DigestKey {
  uint64_t low, high;
};
XINIT_HD DigestKey digest_key(Key key, Dtype dtype, bool complex = false) {
  const Words words = philox_block(key.stream, 0, schedule(key.seed));
  const uint64_t code = static_cast<uint64_t>(dtype) + (complex ? kDtypes : 0);
  return {(words.w[0] | static_cast<uint64_t>(words.w[1]) << 32) + code, words.w[2] | static_cast<uint64_t>(words.w[3])
                                                                                          << 32};
}

// Where the index comes in: a Weyl sequence, of that step from each index to the next.
constexpr uint64_t kDigestStep = 0x9e3779b97f4a7c15u;
XINIT_HD uint64_t digest_weyl(DigestKey key, uint64_t index) { return key.low + index * kDigestStep; }

// The sequence's member, the bits, and the multiplications and shifts of SplitMix64 (Steele, Lea, Flood: "Fast
// splittable pseudorandom number generators", OOPSLA 2014) around them.
XINIT_HD Digest digest_hash(DigestKey key, uint64_t weyl, uint64_t bits) {
  uint64_t h = weyl;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u ^ bits;
  h = (h ^ (h >> 32)) * 0x94d049bb133111ebu;
  h ^= h >> 31;
  const uint64_t g = (h + key.high) * 0xbf58476d1ce4e5b9u;
  return {h, g ^ (g >> 29)};
}
XINIT_HD Digest digest_element(DigestKey key, uint64_t index, uint64_t bits) {
  return digest_hash(key, digest_weyl(key, index), bits);
}

// Of the elements first, first + stride, ... of a window, counted row by row: one thread's share.
template <class T>
XINIT_HD Digest digest_elements(const Window& window, const T* data, DigestKey key, uint64_t first, uint64_t stride) {
  const uint64_t run = static_cast<uint64_t>(window.run), count = static_cast<uint64_t>(window.rows) * run;
  Digest sum;
  for (uint64_t i = first; i < count; i += stride) {
    const Row row = row_at(window, window.rows == 1 ? 0 : i / run);
    const uint64_t column = window.rows == 1 ? i : i % run;
    sum += digest_element(key, row.start + column, data[row.offset + static_cast<int64_t>(column) * window.run_stride]);
  }
  return sum;
}

// The unsigned integer of a dtype's bits.
template <class F>
auto with_bits_of(Dtype dtype, F&& f) {
  if (dtype == Dtype::kDouble) return f(uint64_t{});
  if (dtype == Dtype::kFloat) return f(uint32_t{});
  if (is_float8(dtype)) return f(uint8_t{});
  return f(uint16_t{});
}

}  // namespace xinit
