// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
//
// A pure function: four 32-bit words = f(counter, key). It has no state, so any element can be had at any time, on any
// device. In xinit the counter is (stream low, stream high, block low, block high) and the key is the seed.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define XINIT_HD __host__ __device__ __forceinline__
#define XINIT_UNROLL _Pragma("unroll")
#else
#define XINIT_HD inline __attribute__((always_inline))
#define XINIT_UNROLL _Pragma("GCC unroll 16")
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

// Ten rounds on c[0..3], each a word in the low half of a 64-bit lane L::W (uint64_t or a vector of them). Only low halves
// are ever read, so the high halves may hold anything: a product serves as its own low word, with no masking.
template <class L>
XINIT_HD constexpr void philox4x32_10(typename L::W (&c)[4], const Schedule& keys) {
  XINIT_UNROLL
  for (int i = 0; i < kRounds; ++i) {
    const auto product0 = L::multiply_low(c[0], kMultiplier0);
    const auto product1 = L::multiply_low(c[2], kMultiplier1);
    c[0] = (product1 >> 32) ^ c[1] ^ keys.key0[i];
    c[1] = product1;
    c[2] = (product0 >> 32) ^ c[3] ^ keys.key1[i];
    c[3] = product0;
  }
}

struct ScalarWords {
  using W = uint64_t;
  // 32 x 32 -> 64 bits; what stands above the low 32 bits of x is ignored.
  static XINIT_HD constexpr W multiply_low(W x, uint32_t multiplier) {
    return static_cast<uint64_t>(static_cast<uint32_t>(x)) * multiplier;
  }
};

struct Words {
  uint32_t w[4];
};

// The four words of one block: logical elements 4 * block ... 4 * block + 3 of the stream.
XINIT_HD constexpr Words philox_block(uint64_t stream, uint64_t block, const Schedule& keys) {
  uint64_t c[4] = {stream, stream >> 32, block, block >> 32};
  philox4x32_10<ScalarWords>(c, keys);
  return {{static_cast<uint32_t>(c[0]), static_cast<uint32_t>(c[1]), static_cast<uint32_t>(c[2]),
           static_cast<uint32_t>(c[3])}};
}

}  // namespace xinit
