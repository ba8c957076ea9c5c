// Filling a CUDA tensor: launchers and registration. The kernels are in kernels.cuh.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "../ops.h"
#include "kernels.cuh"

namespace xinit {
namespace {

// How many thread blocks of a kernel the current device holds at a time; asked once for each.
uint64_t resident_blocks(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, uint64_t> known;
  const std::pair<int, const void*> asked{c10::cuda::current_device(), kernel};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(asked);
  if (found != known.end()) return found->second;
  int resident = 0;
  C10_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0));
  return known[asked] = static_cast<uint64_t>(at::cuda::getCurrentDeviceProperties()->multiProcessorCount) * resident;
}

template <class Kernel, class... Arguments>
void launch(uint64_t work, Kernel kernel, const Arguments&... arguments) {
  const uint64_t most = resident_blocks(reinterpret_cast<const void*>(kernel));
  kernel<<<blocks_for(work, most), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_one(const CudaLaunch& parameters) {
  const CudaFill& job = parameters.job;
  specialize(job.fill.distribution.kind, job.fill.dtype, [&](auto kind, auto dtype) {
    launch(work_of(job),
           job.groups > 0 ? fill_contiguous<kind.value, dtype.value> : fill_window<kind.value, dtype.value>,
           parameters);
  });
}

void fill_cuda(const at::Tensor& self, std::vector<Fill> fills, const Source& source) {
  const c10::cuda::CUDAGuard device(self.device());
  CudaFill job{};
  Key key{0, 0};
  if (source.key) {
    key = *source.key;
  } else {
    // Each call takes one stream of its own: its offset advances by the four words of a block.
    auto* generator = at::get_generator_or_default<at::CUDAGeneratorImpl>(source.generator,
                                                                          at::cuda::detail::getDefaultCUDAGenerator());
    const std::lock_guard<std::mutex> lock(generator->mutex_);
    const at::PhiloxCudaState state = generator->philox_cuda_state(4);
    if (state.captured_) {
      job.seed = state.seed_.ptr;
      job.offset = state.offset_.ptr;
      job.offset_in_graph = state.offset_intragraph_;
    } else {
      key = {state.seed_.val, state.offset_.val / 4};
    }
  }
  for (const Fill& fill : fills) {
    job.fill = fill;
    job.fill.key = key;
    launch_one(launch_of(job));
  }
}

// The descriptors travel by way of pinned memory, without a wait.
void launch_many(const at::Tensor& on, const ManyLaunch& launch) {
  const auto size = static_cast<int64_t>(launch.descriptors.size());
  const at::Tensor host = at::empty({size}, at::TensorOptions(at::kByte).pinned_memory(true));
  std::memcpy(host.data_ptr(), launch.descriptors.data(), launch.descriptors.size());
  const at::Tensor there = host.to(on.device(), /*non_blocking=*/true);
  const char* const descriptors = static_cast<const char*>(there.data_ptr());
  fill_many<<<launch.blocks, kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
      reinterpret_cast<const CudaFill*>(descriptors),
      reinterpret_cast<const uint32_t*>(descriptors + launch.first_block()), launch.fills, launch.keys);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void fill_many_cuda(const at::Tensor& on, const std::vector<Fill>& fills) {
  const c10::cuda::CUDAGuard device(on.device());
  TORCH_CHECK(at::cuda::currentStreamCaptureStatusMayInitCtx() == at::cuda::CaptureStatus::None,
              "fill_many_: cannot be captured in a CUDA graph; fill the tensors one by one");
  for_each_launch(fills, launch_one, [&](const ManyLaunch& launch) { launch_many(on, launch); });
}

at::Tensor digest_cuda(const at::Tensor& self, const std::vector<Placed>& windows, const DigestKey& key) {
  const c10::cuda::CUDAGuard device(self.device());
  const at::Tensor sums = at::zeros({2}, self.options().dtype(at::kLong));
  with_bits_of(dtype_of(self), [&](auto bits) {
    using Bits = decltype(bits);
    const Bits* const data = static_cast<const Bits*>(self.const_data_ptr());
    for (const Placed& placed : windows)
      launch(static_cast<uint64_t>(placed.window.rows) * static_cast<uint64_t>(placed.window.run), digest_window<Bits>,
             placed.window, data + placed.offset, key, reinterpret_cast<unsigned long long*>(sums.mutable_data_ptr()));
  });
  return sums;
}

}  // namespace

TORCH_LIBRARY_IMPL(xinit, CUDA, m) { register_ops(m, {fill_cuda, fill_many_cuda, digest_cuda}); }

}  // namespace xinit
