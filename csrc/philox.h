// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
//
// A pure function: four 32-bit words = f(counter, key). It has no state, so any element can be had at any time, on any
// device. In xinit the counter is (stream low, stream high, block low, block high) and the key is the seed.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define XINIT_HD __host__ __device__ __forceinline__
#define XINIT_UNROLL _Pragma("unroll")
#define XINIT_ANY_CALLEE _Pragma("nv_exec_check_disable")  // a template whose callable decides where it runs
#else
#define XINIT_HD inline __attribute__((always_inline))
#define XINIT_UNROLL _Pragma("GCC unroll 16")
#define XINIT_ANY_CALLEE
#endif

namespace xinit {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

// The keys of all rounds. They depend on the seed alone, so a fill computes them once.
struct Schedule {
  uint32_t key0[kRounds], key1[kRounds];
};

XINIT_HD constexpr Schedule schedule(uint64_t seed) {
  Schedule keys{};
  for (int i = 0; i < kRounds; ++i) {
    keys.key0[i] = static_cast<uint32_t>(seed) + kWeyl0 * static_cast<uint32_t>(i);
    keys.key1[i] = static_cast<uint32_t>(seed >> 32) + kWeyl1 * static_cast<uint32_t>(i);
  }
  return keys;
}

// Ten rounds on c[0..3]. L names the word W, a scalar or a vector of them, and its product by a multiplier, high and
// low; the keys are scalars, or vectors of the same one in all lanes. Vector lanes keep a word in the low half of 64
// bits and whatever they like above it: a product is then its own low word.
template <class L, class Keys>
XINIT_HD constexpr void philox4x32_10(typename L::W (&c)[4], const Keys& keys) {
  XINIT_UNROLL
  for (int i = 0; i < kRounds; ++i) {
    const auto product0 = L::multiply(c[0], kMultiplier0);
    const auto product1 = L::multiply(c[2], kMultiplier1);
    c[0] = product1.high ^ c[1] ^ keys.key0[i];
    c[1] = product1.low;
    c[2] = product0.high ^ c[3] ^ keys.key1[i];
    c[3] = product0.low;
  }
}

template <class W>
struct Product {
  W high, low;
};

struct ScalarWords {
  using W = uint32_t;
  static XINIT_HD constexpr Product<W> multiply(W x, uint32_t multiplier) {
    const uint64_t product = static_cast<uint64_t>(x) * multiplier;
    return {static_cast<uint32_t>(product >> 32), static_cast<uint32_t>(product)};
  }
};

struct Words {
  uint32_t w[4];
};

// The four words of one block: logical elements 4 * block ... 4 * block + 3 of the stream.
XINIT_HD constexpr Words philox_block(uint64_t stream, uint64_t block, const Schedule& keys) {
  Words words{{static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32), static_cast<uint32_t>(block),
               static_cast<uint32_t>(block >> 32)}};
  philox4x32_10<ScalarWords>(words.w, keys);
  return words;
}

}  // namespace xinit
