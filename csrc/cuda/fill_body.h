// What one CUDA thread does, as a function of its index and the number of threads. It also compiles on a host, where
// tests run it with any launch shape; the kernels in fill.cu are a line around it. Any number of threads fills the same
// bits.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "../float8.h"
#include "../half.h"

namespace xinit {

// Sixteen bytes, stored at once.
struct alignas(16) Packet {
  uint32_t words[4];
};

// A fill and how it is shared out. A contiguous row is cut into groups, whose first element is aligned for a store of
// all of one, and the units before and after them; other windows have units only.
struct CudaFill {
  Fill fill;
  uint64_t groups;       // each of kGroupBlocks blocks
  uint64_t group_block;  // the first group's first block
  char* group_out;       //   and place
  uint64_t head_units;   // units before the groups; the remaining ones follow them
  uint64_t tail_unit;    // index of the first unit after the groups
  // Under graph capture the key is known at replay only: in memory. Null otherwise.
  const int64_t* seed;
  const int64_t* offset;
  uint64_t offset_in_graph;
};

// What makes a packet; of float64 half a block, of float8 a word is enough.
template <Dtype dtype>
constexpr int kGroupBlocks = dtype == Dtype::kHalf || dtype == Dtype::kBFloat16 ? 2 : 1;

// Cuts a window into groups and units, if it is one contiguous row that can be cut so.
inline void share_out(CudaFill& job, int64_t element_size) {
  const Window& w = job.fill.window;
  job.groups = 0;
  job.head_units = 0;
  job.tail_unit = 0;
  const uint64_t blocks_in_group = element_size == 2 ? 2 : 1, alignment = element_size == 1 ? 4 : 16;
  if (w.ndim != 0 || w.run_stride != 1) return;
  uint64_t head = w.base % 4 != 0 ? 1 : 0;
  const uint64_t last = (w.base + static_cast<uint64_t>(w.run)) / 4 - w.base / 4;  // the unit after the last whole one
  const auto place = [&](uint64_t unit) {
    return static_cast<char*>(job.fill.out) + static_cast<int64_t>((w.base / 4 + unit) * 4 - w.base) * element_size;
  };
  if (head < last && reinterpret_cast<uintptr_t>(place(head)) % alignment != 0)
    ++head;  // half precision: every other block is aligned
  if (head >= last || reinterpret_cast<uintptr_t>(place(head)) % alignment != 0) return;
  job.groups = (last - head) / blocks_in_group;
  job.group_block = w.base / 4 + head;
  job.group_out = place(head);
  job.head_units = head;
  job.tail_unit = head + job.groups * blocks_in_group;
}

// ---- rounding to the dtype; the bounds are values of the dtype, so clamping before it is clamping after ----

template <Kind kind>
XINIT_HD float clamp(float x, const Distribution& d) {
  if constexpr (kClamped<kind>) {
    // A GPU's minimum and maximum order -0 below +0. A bound that is zero is +0: right for one of them alone.
    x = ScalarLanes::max(x, d.low);
    x = x < (kTopped<kind> ? d.top : d.high) ? x : d.high;
  }
  return x;
}

template <Kind kind, Dtype dtype>
XINIT_HD typename Element<dtype>::type element(float x, const Fill& fill) {
  const Distribution& d = fill.distribution;
  if constexpr (dtype == Dtype::kDouble) {
    double wide = x;
    if constexpr (kClamped<kind>) {
      wide = wide > d.low_wide ? wide : d.low_wide;
      wide = wide < d.high_wide ? wide : d.high_wide;
    }
    return wide;
  } else if constexpr (dtype == Dtype::kFloat) {
    return clamp<kind>(x, d);
  } else if constexpr (dtype == Dtype::kHalf) {
    return static_cast<uint16_t>(float16_bits<ScalarLanes>(clamp<kind>(x, d)));
  } else if constexpr (dtype == kFloat8) {
    return static_cast<uint8_t>(float8_bits<ScalarLanes>(clamp<kind>(x, d), Float8::of(fill.dtype)));
  } else {
    return static_cast<uint16_t>(bfloat16_bits<ScalarLanes>(clamp<kind>(x, d)));
  }
}

// Two 16-bit values in one word.
template <Kind kind, Dtype dtype>
XINIT_HD uint32_t element_pair(float x, float y, const Fill& fill) {
#ifdef __CUDA_ARCH__
  // Uniform ones are clamped as a pair, where the GPU can: none is -0 before it is rounded, so that order does not
  // matter.
  constexpr bool kAfter = kind == Kind::kUniformClamped && __CUDA_ARCH__ >= 800;
  const Distribution& d = fill.distribution;
  if constexpr (!kAfter) {
    x = clamp<kind>(x, d);
    y = clamp<kind>(y, d);
  }
  if constexpr (dtype == Dtype::kHalf) {
    __half2 pair = __floats2half2_rn(x, y);
    if constexpr (kAfter) pair = __hmin2(__hmax2(pair, __float2half2_rn(d.low)), __float2half2_rn(d.high));
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    if constexpr (kAfter) pair = __hmin2(__hmax2(pair, __float2bfloat162_rn(d.low)), __float2bfloat162_rn(d.high));
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
#else
  return element<kind, dtype>(x, fill) | static_cast<uint32_t>(element<kind, dtype>(y, fill)) << 16;
#endif
}

// ---- the two ways to fill ----

template <Kind kind, Dtype dtype>
XINIT_HD void fill_unit(const Fill& fill, uint64_t stream, const Schedule& keys, const Unit& unit) {
  using T = typename Element<dtype>::type;
  if (unit.first >= unit.last) return;
  const Words words = philox_block(stream, unit.block, keys);
  float x[4];
  transform<kind, ScalarLanes>(words.w, x, fill.distribution);
  T* out = static_cast<T*>(fill.out) + unit.offset;
  XINIT_UNROLL
  for (int i = 0; i < 4; ++i)
    if (unit.first <= i && i < unit.last) {
      *out = element<kind, dtype>(x[i], fill);
      out += fill.window.run_stride;
    }
}

// Groups group, group + threads, ..., `count` of them, transformed together.
template <Kind kind, Dtype dtype, int count>
XINIT_HD void fill_groups(const CudaFill& job, const Schedule& keys, uint64_t group, uint64_t threads) {
  constexpr int kBlocks = kGroupBlocks<dtype>;
  uint32_t words[4 * kBlocks * count];
  float x[4 * kBlocks * count];
  XINIT_UNROLL
  for (int i = 0; i < kBlocks * count; ++i) {
    const uint64_t block =
        (group + static_cast<uint64_t>(i / kBlocks) * threads) * kBlocks + static_cast<uint64_t>(i % kBlocks);
    const Words of_block = philox_block(job.fill.key.stream, job.group_block + block, keys);
    XINIT_UNROLL
    for (int j = 0; j < 4; ++j) words[4 * i + j] = of_block.w[j];
  }
  transform<kind, ScalarLanes>(words, x, job.fill.distribution);
  XINIT_UNROLL
  for (int i = 0; i < count; ++i) {
    const uint64_t at = group + static_cast<uint64_t>(i) * threads;
    const float* const values = x + 4 * kBlocks * i;
    if constexpr (dtype == Dtype::kDouble) {
      XINIT_UNROLL
      for (int j = 0; j < 4; ++j)
        reinterpret_cast<double*>(job.group_out)[4 * at + j] = element<kind, dtype>(values[j], job.fill);
    } else if constexpr (dtype == kFloat8) {
      uint32_t four = 0;
      XINIT_UNROLL
      for (int j = 0; j < 4; ++j) four |= static_cast<uint32_t>(element<kind, dtype>(values[j], job.fill)) << (8 * j);
      reinterpret_cast<uint32_t*>(job.group_out)[at] = four;
    } else {
      Packet packet;
      XINIT_UNROLL
      for (int j = 0; j < 4; ++j) {
        if constexpr (dtype == Dtype::kFloat)
          packet.words[j] = static_cast<uint32_t>(ScalarLanes::bits(element<kind, dtype>(values[j], job.fill)));
        else
          packet.words[j] = element_pair<kind, dtype>(values[2 * j], values[2 * j + 1], job.fill);
      }
      reinterpret_cast<Packet*>(job.group_out)[at] = packet;
    }
  }
}

// The groups of a contiguous row, and, by the first threads, the few units around them.
template <Kind kind, Dtype dtype>
XINIT_HD void contiguous_thread(const CudaFill& job, const Schedule& keys, uint64_t thread, uint64_t threads) {
  // Groups in flight; neighbouring threads still write neighbouring packets. Those transformed together share the code
  // for a truncated normal's tails.
  constexpr bool truncated = kind == Kind::kTruncated || kind == Kind::kTruncatedTail;
  constexpr int kTogether = kind == Kind::kTruncated ? 2 / kGroupBlocks<dtype> : 1;
  constexpr int kUnroll = truncated || dtype == Dtype::kDouble ? 1 : 4;
  constexpr uint64_t kStep = kTogether * kUnroll;
  uint64_t group = thread;
  for (; group + (kStep - 1) * threads < job.groups; group += kStep * threads) {
    XINIT_UNROLL
    for (int i = 0; i < kUnroll; ++i)
      fill_groups<kind, dtype, kTogether>(job, keys, group + static_cast<uint64_t>(i * kTogether) * threads, threads);
  }
  for (; group < job.groups; group += threads) fill_groups<kind, dtype, 1>(job, keys, group, threads);
  const Window& w = job.fill.window;
  const uint64_t edges = job.head_units + (w.units() - job.tail_unit);
  for (uint64_t i = thread; i < edges; i += threads)
    fill_unit<kind, dtype>(job.fill, job.fill.key.stream, keys,
                           row_unit(w, w.base, 0, i < job.head_units ? i : job.tail_unit + (i - job.head_units)));
}

// Any window, and any key.
template <Kind kind, Dtype dtype>
XINIT_HD void window_thread(const CudaFill& job, const Schedule& keys, uint64_t thread, uint64_t threads) {
  const Window& w = job.fill.window;
  uint64_t stream = job.fill.key.stream;
  Schedule own = keys;
  if (job.seed != nullptr) {
    own = schedule(static_cast<uint64_t>(*job.seed));
    stream = (static_cast<uint64_t>(*job.offset) + job.offset_in_graph) / 4;
  }
  for (uint64_t unit = thread; unit < w.units(); unit += threads)
    fill_unit<kind, dtype>(job.fill, stream, own, unit_at(w, unit));
}

// ---- many fills of contiguous rows in one launch: each has a range of thread blocks, as if it were a grid of its own
// ----

constexpr uint64_t kGroupsPerBlock = 4096;

// The fill that thread block `block` works on: the last whose first block is not beyond it.
XINIT_HD uint32_t fill_of_block(const uint32_t* first_block, uint32_t fills, uint32_t block) {
  uint32_t low = 0, high = fills;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (first_block[middle] <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

struct ContiguousThread {
  const CudaFill& job;
  const Schedule& keys;
  uint64_t thread, threads;
  template <class K, class D>
  XINIT_HD void operator()(K, D) const {
    contiguous_thread<K::value, D::value>(job, keys, thread, threads);
  }
};

}  // namespace xinit
