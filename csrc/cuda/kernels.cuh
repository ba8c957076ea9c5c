// The kernels, without torch: what benchmarks/sass_budget.py compiles and counts is what runs.
#pragma once

#include "../digest.h"
#include "launches.h"

namespace xinit {

__device__ __forceinline__ uint64_t thread_index() {
  return static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ uint64_t thread_count() { return static_cast<uint64_t>(gridDim.x) * kThreads; }

// Six thread blocks on a multiprocessor of 1536 threads or more: at most 40 registers. Turing's has 1024.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kResident = 4;
#else
constexpr int kResident = 6;
#endif

template <Kind kind, Dtype dtype>
__global__ void __launch_bounds__(kThreads, kResident) fill_contiguous(const __grid_constant__ CudaLaunch launch) {
  contiguous_thread<kind, dtype>(launch.job, launch.keys, thread_index(), thread_count());
}

template <Kind kind, Dtype dtype>
__global__ void __launch_bounds__(kThreads, 4) fill_window(const __grid_constant__ CudaLaunch launch) {
  window_thread<kind, dtype>(launch.job, launch.keys, thread_index(), thread_count());
}

// Many fills with one seed. `first_block` has an entry for each, and one more: the number of blocks.
__global__ void __launch_bounds__(kThreads, kResident)
    fill_many(const CudaFill* jobs, const uint32_t* first_block, uint32_t fills,
              const __grid_constant__ Schedule keys) {
  constexpr uint32_t kWords = sizeof(CudaFill) / sizeof(uint32_t);
  __shared__ alignas(CudaFill) uint32_t words[kWords];
  const uint32_t index = fill_of_block(first_block, fills, blockIdx.x);
  const uint32_t first = first_block[index], blocks = first_block[index + 1] - first;
  for (uint32_t i = threadIdx.x; i < kWords; i += kThreads)
    words[i] = reinterpret_cast<const uint32_t*>(jobs + index)[i];
  __syncthreads();
  const CudaFill& job = *reinterpret_cast<const CudaFill*>(words);
  specialize(job.fill.distribution.kind, job.fill.dtype,
             ContiguousThread{job, keys, static_cast<uint64_t>(blockIdx.x - first) * kThreads + threadIdx.x,
                              static_cast<uint64_t>(blocks) * kThreads});
}

// Adds the digest of a window to sums[0] and sums[1]. Integer sums come out the same in any order.
template <class Bits>
__global__ void __launch_bounds__(kThreads, kResident)
    digest_window(const __grid_constant__ Window window, const Bits* data, DigestKey key, unsigned long long* sums) {
  Digest sum = digest_elements(window, data, key, thread_index(), thread_count());
  for (int distance = 16; distance > 0; distance /= 2)
    sum += {__shfl_down_sync(~0u, sum.low, distance), __shfl_down_sync(~0u, sum.high, distance)};
  if (threadIdx.x % 32 == 0) {
    atomicAdd(sums, static_cast<unsigned long long>(sum.low));
    atomicAdd(sums + 1, static_cast<unsigned long long>(sum.high));
  }
}

}  // namespace xinit
