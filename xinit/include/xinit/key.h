// Keys: values that name a stream of random words. Needs no torch.
#pragma once

#include <cstdint>
#include <string_view>

namespace xinit {

// Names one endless row of random words. Equal keys give equal weights, on any device, in any order.
struct Key {
  uint64_t seed = 0, stream = 0;

  // A key for a part of what this one names: a parameter by its name, a layer or an expert by its number. The new
  // stream is the little-endian 8-byte BLAKE2b digest of seed, stream and data; the order of folding matters.
  Key fold_in(std::string_view name) const;
  Key fold_in(uint64_t number) const;
};

inline bool operator==(Key a, Key b) { return a.seed == b.seed && a.stream == b.stream; }
inline bool operator!=(Key a, Key b) { return !(a == b); }

}  // namespace xinit
