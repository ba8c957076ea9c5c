// The kernels, without torch: what benchmarks/sass_budget.py compiles and counts is what runs.
#pragma once

#include "fill_body.h"

namespace xinit {

constexpr int kThreads = 256;

__device__ __forceinline__ uint64_t thread_index() {
  return static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ uint64_t thread_count() { return static_cast<uint64_t>(gridDim.x) * kThreads; }

// Six thread blocks on a multiprocessor of 2048 threads: at most 40 registers.
template <Kind kind, Dtype dtype>
__global__ void __launch_bounds__(kThreads, 6) fill_contiguous(const __grid_constant__ CudaFill job) {
  contiguous_thread<kind, dtype>(job, thread_index(), thread_count());
}

template <Kind kind, Dtype dtype>
__global__ void __launch_bounds__(kThreads, 4) fill_window(const __grid_constant__ CudaFill job) {
  window_thread<kind, dtype>(job, thread_index(), thread_count());
}

}  // namespace xinit
