// Filling a CUDA tensor: launchers and registration. The kernels are in kernels.cuh.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "../ops.h"
#include "kernels.cuh"

namespace xinit {
namespace {

// As many thread blocks as there is work for, and at most what the device holds at a time: threads loop over the rest.
template <class Kernel>
void launch(Kernel kernel, const CudaFill& job, uint64_t work) {
  int resident = 0;
  C10_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0));
  const uint64_t most = static_cast<uint64_t>(at::cuda::getCurrentDeviceProperties()->multiProcessorCount) * resident;
  const uint64_t wanted = (work + kThreads - 1) / kThreads;
  kernel<<<static_cast<unsigned>(wanted < most ? wanted : most), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(job);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Sets the job's key; every call on a generator takes one stream of its own, so its offset advances by four words.
void take_key(const Source& source, CudaFill& job) {
  Key key{0, 0};
  if (source.key) {
    key = *source.key;
  } else {
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
  job.fill.stream = key.stream;
  job.fill.keys = schedule(key.seed);
}

void fill_cuda(const at::Tensor& self, const Distribution& distribution, const std::vector<Placed>& windows,
               const Source& source) {
  const c10::cuda::CUDAGuard device(self.device());
  CudaFill job{};
  take_key(source, job);
  const int64_t element_size = static_cast<int64_t>(self.element_size());
  for (const Placed& placed : windows) {
    job.fill.out = static_cast<char*>(self.mutable_data_ptr()) + placed.offset * element_size;
    job.fill.dtype = dtype_of(self);
    job.fill.distribution = distribution;
    job.fill.window = placed.window;
    if (job.seed == nullptr) share_out(job, element_size);
    specialize(distribution.kind, job.fill.dtype, [&](auto kind, auto dtype) {
      if (job.groups > 0)
        launch(fill_contiguous<kind.value, dtype.value>, job, job.groups);
      else
        launch(fill_window<kind.value, dtype.value>, job, placed.window.units());
    });
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(xinit, CUDA, m) { register_ops(m, fill_cuda); }

}  // namespace xinit
