// A CUDA device for one kernel at a time, on the host: what translated PTX calls (ptx.py). The PTX ISA manual says what
// each instruction does; test_ptx.py tries each of them. Every access is checked: within memory that was told of,
// aligned to its own width, a store where stores are allowed, and counted byte by byte. Threads of a block that wait
// for each other are fibers, and a wait that cannot end is an error; so is a loop that takes too many turns.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace machine {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Arguments>
[[noreturn, gnu::cold]] void fault(const char* format, Arguments... arguments) {
  char text[256];
  std::snprintf(text, sizeof text, format, arguments...);
  throw Fault(text);
}

template <class To, class From>
To bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// ---- global memory: the host's, as far as it was told of ----

struct Region {
  u64 begin, end;
  bool writable;
  u8* counts;  // how often each byte was stored to, up to 255; null if nobody counts
};

std::vector<Region>& regions();  // in backend.cpp

inline char* global(u64 address, unsigned size, bool store) {
  const char* const what = store ? "store" : "load";
  if (address % size != 0)
    fault("misaligned %s of %u bytes at %#llx", what, size, static_cast<unsigned long long>(address));
  for (const Region& region : regions()) {
    if (address < region.begin || address + size > region.end) continue;
    if (store && !region.writable) fault("store to constant memory at %#llx", static_cast<unsigned long long>(address));
    if (store && region.counts != nullptr)
      for (u8* count = region.counts + (address - region.begin);
           count != region.counts + (address - region.begin) + size; ++count)
        *count += *count < 255;
    return reinterpret_cast<char*>(address);
  }
  fault("%s of %u bytes outside of all memory at %#llx", what, size, static_cast<unsigned long long>(address));
}

// ---- threads ----

struct Thread;

struct Kernel {
  const char* name;
  void (*run)(Thread&);
  u32 parameter_bytes, shared_bytes;
  bool waits;  // whether its threads wait for each other
};

constexpr u64 kSharedBase = 0x400;  // an address that no one takes for an offset

struct Fiber {
  ucontext_t context;
  enum { kRunning, kAtBarrier, kInShuffle, kDone } state = kRunning;
  u32 given = 0, from = 0, got = 0;  // a shuffle's value, the lane to take one from, and that lane's
};

struct Thread {
  u32 index, block, threads, blocks;
  const char* parameters;
  u32 parameter_bytes;
  char* shared;
  u32 shared_bytes;
  s64 turns;                   // of loops, that are left
  Fiber* fiber = nullptr;      // of a kernel whose threads wait,
  ucontext_t* back = nullptr;  // and who runs it

  void turn() {
    if (--turns < 0) fault("a loop does not end in thread %u of block %u", index, block);
  }
  template <class T>
  T parameter(u64 at) const {
    if (at % sizeof(T) != 0 || at + sizeof(T) > parameter_bytes)
      fault("load of %u bytes at %llu of %u bytes of parameters", static_cast<unsigned>(sizeof(T)),
            static_cast<unsigned long long>(at), parameter_bytes);
    T value;
    std::memcpy(&value, parameters + at, sizeof value);
    return value;
  }
  template <class T>
  T load(u64 address) const {
    T value;
    std::memcpy(&value, global(address, sizeof(T), false), sizeof value);
    return value;
  }
  template <class T>
  void store(u64 address, T value) const {
    std::memcpy(global(address, sizeof(T), true), &value, sizeof value);
  }
  char* in_shared(u64 address, unsigned size) const {
    if (address % size != 0 || address < kSharedBase || address - kSharedBase + size > shared_bytes)
      fault("%u bytes at %#llx of %u bytes of shared memory", size, static_cast<unsigned long long>(address),
            shared_bytes);
    return shared + (address - kSharedBase);
  }
  template <class T>
  T load_shared(u64 address) const {
    T value;
    std::memcpy(&value, in_shared(address, sizeof(T)), sizeof value);
    return value;
  }
  template <class T>
  void store_shared(u64 address, T value) const {
    std::memcpy(in_shared(address, sizeof(T)), &value, sizeof value);
  }
  u64 atomic_add(u64 address, u64 value) const {  // threads take turns, so that it is atomic
    const u64 old = load<u64>(address);
    store<u64>(address, old + value);
    return old;
  }
  void wait() {
    if (fiber == nullptr) fault("thread %u of block %u waits, in a kernel that was said not to", index, block);
    swapcontext(&fiber->context, back);
  }
  void barrier() {
    fiber->state = Fiber::kAtBarrier;
    wait();
  }
  u32 shuffle_down(u32 value, u32 distance, u32 control, u32 members) {
    if (members != ~0u) fault("a shuffle of some lanes only, %#x", members);
    const u32 lane = index % 32, segment = control >> 8 & 31, most = (lane & segment) | (control & 31 & ~segment);
    fiber->given = value;
    fiber->from = lane + distance <= most ? lane + distance : lane;
    fiber->state = Fiber::kInShuffle;
    wait();
    return fiber->got;
  }
};

// Several words that are stored or loaded at once.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T at[count];
};

// ---- arithmetic of float32, on its bits ----

inline float f(u32 x) { return bits<float>(x); }
inline double d(u64 x) { return bits<double>(x); }
constexpr u32 kNaN = 0x7fffffffu;
inline u32 single(float x) { return std::isnan(x) ? kNaN : bits<u32>(x); }
inline u32 add(u32 x, u32 y) { return single(f(x) + f(y)); }
inline u32 subtract(u32 x, u32 y) { return single(f(x) - f(y)); }
inline u32 multiply(u32 x, u32 y) { return single(f(x) * f(y)); }
inline u32 fma(u32 x, u32 y, u32 z) { return single(std::fmaf(f(x), f(y), f(z))); }
inline u64 widen(u32 x) { return std::isnan(f(x)) ? ~u64{0} >> 1 : bits<u64>(static_cast<double>(f(x))); }

// Of two zeros +0 is the greater one; of a number and a NaN, it is the number.
template <bool least>
u32 pick(u32 x, u32 y) {
  if (std::isnan(f(x)) || std::isnan(f(y))) return std::isnan(f(x)) ? (std::isnan(f(y)) ? kNaN : y) : x;
  if (f(x) == 0 && f(y) == 0) return least ? x | y : x & y;
  return (f(x) < f(y)) == least ? x : y;
}

// ---- 16-bit floats. Rounding is done by exact arithmetic, not by the bits that the project rounds by ----

struct Format {
  int digits, least_exponent;  // significant bits; of the least normal number
  double most;
};
constexpr Format kHalf{11, -14, 65504.0}, kBFloat16{8, -126, 0x1.fep127};

// To the nearest number of the format, of two that are as near the even one.
inline double nearest(double x, const Format& format) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);  // x in [1/2, 1) · 2^exponent
  const double step = std::ldexp(1.0, std::max(exponent - 1, format.least_exponent) - format.digits + 1);
  const double rounded = std::nearbyint(x / step) * step;
  return std::fabs(rounded) > format.most ? std::copysign(HUGE_VAL, x) : std::copysign(rounded, x);
}

inline u32 wide(u16 x, const Format& format) {
  const int stored = format.digits - 1, all = (1 << (15 - stored)) - 1;
  const int exponent = x >> stored & all, fraction = x & ((1 << stored) - 1);
  double magnitude;
  if (exponent == all)
    magnitude = fraction != 0 ? NAN : HUGE_VAL;
  else if (exponent == 0)
    magnitude = std::ldexp(fraction, format.least_exponent - stored);
  else
    magnitude = std::ldexp(fraction + (1 << stored), format.least_exponent - stored + exponent - 1);
  return std::isnan(magnitude) ? kNaN : bits<u32>(static_cast<float>(x >> 15 ? -magnitude : magnitude));
}

inline u16 narrow(u32 x, const Format& format) {
  if (std::isnan(f(x))) return 0x7fff;
  const double y = nearest(f(x), format), magnitude = std::fabs(y);
  const int stored = format.digits - 1;
  u32 code;
  if (std::isinf(y)) {
    code = ((1u << (15 - stored)) - 1) << stored;
  } else if (magnitude < std::ldexp(1.0, format.least_exponent)) {
    code = static_cast<u32>(std::ldexp(magnitude, stored - format.least_exponent));
  } else {
    int exponent;
    const double fraction = std::frexp(magnitude, &exponent);
    code = static_cast<u32>(exponent - format.least_exponent) << stored |
           (static_cast<u32>(std::ldexp(fraction, format.digits)) & ((1u << stored) - 1));
  }
  return static_cast<u16>(code | (std::signbit(y) ? 0x8000u : 0u));
}

inline u32 pack(u16 high, u16 low) { return static_cast<u32>(high) << 16 | low; }

template <bool least>
u16 pick16(u16 x, u16 y, const Format& format) {
  return narrow(pick<least>(wide(x, format), wide(y, format)), format);
}
template <bool least>
u32 pick16x2(u32 x, u32 y, const Format& format) {
  return pack(pick16<least>(static_cast<u16>(x >> 16), static_cast<u16>(y >> 16), format),
              pick16<least>(static_cast<u16>(x), static_cast<u16>(y), format));
}

}  // namespace machine
