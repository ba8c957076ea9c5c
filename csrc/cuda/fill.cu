// Filling a CUDA tensor: launchers and registration. The kernels are in kernels.cuh.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstring>
#include <map>

#include "../ops.h"
#include "kernels.cuh"

namespace xinit {
namespace {

// As many thread blocks as there is work for, and at most what the device holds at a time: threads loop over the rest.
template <class Kernel, class... Arguments>
void launch(uint64_t work, Kernel kernel, const Arguments&... arguments) {
  int resident = 0;
  C10_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0));
  const uint64_t most = static_cast<uint64_t>(at::cuda::getCurrentDeviceProperties()->multiProcessorCount) * resident;
  const uint64_t wanted = (work + kThreads - 1) / kThreads;
  kernel<<<static_cast<unsigned>(wanted < most ? wanted : most), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
      arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_one(CudaFill job) {
  if (job.seed == nullptr) share_out(job, size_of(job.fill.dtype));
  const CudaLaunch parameters{job, schedule(job.fill.key.seed)};
  specialize(job.fill.distribution.kind, job.fill.dtype, [&](auto kind, auto dtype) {
    if (job.groups > 0)
      launch(job.groups, fill_contiguous<kind.value, dtype.value>, parameters);
    else
      launch(job.fill.window.units(), fill_window<kind.value, dtype.value>, parameters);
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
    launch_one(job);
  }
}

// One launch for all contiguous fills of a seed. Their descriptors travel by way of pinned memory, without a wait.
void launch_many(const at::Tensor& on, uint64_t seed, const std::vector<CudaFill>& jobs) {
  std::vector<uint32_t> first_block{0};
  for (const CudaFill& job : jobs) {
    const uint64_t work = job.groups > 0 ? job.groups : job.fill.window.units();
    first_block.push_back(first_block.back() + static_cast<uint32_t>((work + kGroupsPerBlock - 1) / kGroupsPerBlock));
  }
  const size_t bytes = jobs.size() * sizeof(CudaFill), all = bytes + first_block.size() * sizeof(uint32_t);
  const at::Tensor host = at::empty({static_cast<int64_t>(all)}, at::TensorOptions(at::kByte).pinned_memory(true));
  char* const data = static_cast<char*>(host.data_ptr());
  std::memcpy(data, jobs.data(), bytes);
  std::memcpy(data + bytes, first_block.data(), all - bytes);
  const at::Tensor there = host.to(on.device(), /*non_blocking=*/true);
  const char* const descriptors = static_cast<const char*>(there.data_ptr());
  fill_many<<<first_block.back(), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
      reinterpret_cast<const CudaFill*>(descriptors), reinterpret_cast<const uint32_t*>(descriptors + bytes),
      static_cast<uint32_t>(jobs.size()), schedule(seed));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void fill_many_cuda(const at::Tensor& on, const std::vector<Fill>& fills) {
  const c10::cuda::CUDAGuard device(on.device());
  TORCH_CHECK(at::cuda::currentStreamCaptureStatusMayInitCtx() == at::cuda::CaptureStatus::None,
              "fill_many_: cannot be captured in a CUDA graph; fill the tensors one by one");
  std::map<uint64_t, std::vector<CudaFill>> by_seed;
  for (const Fill& fill : fills) {
    CudaFill job{};
    job.fill = fill;
    share_out(job, size_of(fill.dtype));
    if (fill.window.ndim == 0 && fill.window.run_stride == 1)
      by_seed[fill.key.seed].push_back(job);
    else
      launch_one(job);
  }
  for (const auto& [seed, jobs] : by_seed) launch_many(on, seed, jobs);
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
