// A device for xinit's operators on which the CUDA kernels run, emulated by machine.h. Its tensors are views of the
// CPU's. What is launched comes from csrc/cuda/launches.h, as on a GPU; what is launched it on is this file.
#include <ATen/ATen.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <memory>

#include "csrc/cuda/launches.h"
#include "csrc/ops.h"
#include "machine.h"

namespace machine {

extern const Kernel kKernels[];
extern const int kKernelCount;

std::vector<Region>& regions() {
  static std::vector<Region> all;
  return all;
}

namespace {

std::vector<std::string> launched;
std::vector<int64_t> chosen;  // the only threads to run, counted over all blocks; all if there are none
uint64_t resident = 6 * 132;  // thread blocks that the device holds: an H100's

// ---- one kernel ----

constexpr size_t kStack = 1 << 18;

Thread* entering;  // whose fiber is about to begin
const Kernel* running;
std::string failure;

void enter() {
  Thread& thread = *entering;
  try {
    running->run(thread);
  } catch (const Fault& fault) {
    failure = fault.what();
  }
  thread.fiber->state = Fiber::kDone;
  swapcontext(&thread.fiber->context, thread.back);
}

void run_fibers(const Kernel& kernel, std::vector<Thread>& threads) {
  std::vector<Fiber> fibers(threads.size());
  const std::unique_ptr<char[]> stacks(new char[kStack * threads.size()]);
  ucontext_t here;
  running = &kernel;
  failure.clear();
  for (size_t i = 0; i < threads.size(); ++i) {
    threads[i].fiber = &fibers[i];
    threads[i].back = &here;
    ucontext_t& context = fibers[i].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks.get() + i * kStack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
  }
  const auto are = [&](size_t begin, size_t end, auto state) {
    return std::all_of(fibers.begin() + begin, fibers.begin() + end, [&](const Fiber& f) { return f.state == state; });
  };
  while (!are(0, fibers.size(), Fiber::kDone)) {
    bool moved = false;
    for (size_t i = 0; i < fibers.size(); ++i) {
      if (fibers[i].state != Fiber::kRunning) continue;
      moved = true;
      entering = &threads[i];
      swapcontext(&here, &fibers[i].context);
      if (!failure.empty()) throw Fault(failure);
    }
    for (size_t warp = 0; warp < fibers.size(); warp += 32) {
      const size_t end = std::min(warp + 32, fibers.size());
      if (!are(warp, end, Fiber::kInShuffle)) continue;
      moved = true;
      for (size_t i = warp; i < end; ++i) fibers[i].got = fibers.at(warp + fibers[i].from).given;
      for (size_t i = warp; i < end; ++i) fibers[i].state = Fiber::kRunning;
    }
    if (are(0, fibers.size(), Fiber::kAtBarrier)) {
      moved = true;
      for (Fiber& fiber : fibers) fiber.state = Fiber::kRunning;
    }
    if (!moved) fault("%s: its threads wait for each other in different places", kernel.name);
  }
}

void run(const Kernel& kernel, uint32_t blocks, uint32_t threads, const void* parameters, size_t bytes) {
  if (bytes < kernel.parameter_bytes)
    fault("%s takes %u bytes of parameters, but got %zu", kernel.name, kernel.parameter_bytes, bytes);
  launched.emplace_back(kernel.name);
  std::vector<char> shared(kernel.shared_bytes + 16);
  char* const aligned = shared.data() + (16 - reinterpret_cast<uintptr_t>(shared.data()) % 16) % 16;
  const auto thread_of = [&](uint32_t block, uint32_t index) {
    return Thread{index,
                  block,
                  threads,
                  blocks,
                  static_cast<const char*>(parameters),
                  kernel.parameter_bytes,
                  aligned,
                  kernel.shared_bytes,
                  int64_t{1} << 32};
  };
  if (!chosen.empty()) {
    for (const int64_t at : chosen) {
      Thread thread = thread_of(static_cast<uint32_t>(at / threads), static_cast<uint32_t>(at % threads));
      kernel.run(thread);
    }
    return;
  }
  for (uint32_t block = 0; block < blocks; ++block) {
    std::fill(shared.begin(), shared.end(), '\xa5');
    std::vector<Thread> all;
    for (uint32_t i = 0; i < threads; ++i) all.push_back(thread_of(block, i));
    if (kernel.waits)
      run_fibers(kernel, all);
    else
      for (Thread& thread : all) kernel.run(thread);
  }
}

const Kernel& kernel_of(const std::string& part) {
  for (int i = 0; i < kKernelCount; ++i)
    if (std::strstr(kKernels[i].name, part.c_str()) != nullptr) return kKernels[i];
  fault("there is no kernel %s", part.c_str());
}

// Memory that the host has given to the device for a while.
struct Given {
  Given(const void* data, size_t bytes, bool writable, uint8_t* counts = nullptr)
      : begin(reinterpret_cast<uintptr_t>(data)) {
    regions().push_back({begin, begin + bytes, writable, counts});
  }
  Given(const Given&) = delete;
  ~Given() {
    auto& all = regions();
    all.erase(std::find_if(all.begin(), all.end(), [&](const Region& region) { return region.begin == begin; }));
  }
  const uint64_t begin;
};

// ---- what fill.cu does, here ----

using namespace xinit;

const int64_t* captured_seed = nullptr;
const int64_t* captured_offset = nullptr;
uint64_t captured_in_graph = 0;

void launch_one(const CudaLaunch& launch) {
  const CudaFill& job = launch.job;
  const Dtype dtype = is_float8(job.fill.dtype) ? kFloat8 : job.fill.dtype;
  const Kernel& kernel = kernel_of(std::string(job.groups > 0 ? "fill_contiguous" : "fill_window") + "ILNS_4KindE" +
                                   std::to_string(static_cast<int>(job.fill.distribution.kind)) + "ELNS_5DtypeE" +
                                   std::to_string(static_cast<int>(dtype)) + "EE");
  const Given seed(job.seed, job.seed != nullptr ? 8 : 0, false),
      offset(job.offset, job.offset != nullptr ? 8 : 0, false);
  run(kernel, blocks_for(work_of(job), resident), kThreads, &launch, sizeof launch);
}

void launch_many(const ManyLaunch& launch) {
  struct {
    const void *jobs, *first_block;
    uint32_t fills;
    Schedule keys;
  } parameters{launch.descriptors.data(), launch.descriptors.data() + launch.first_block(), launch.fills, launch.keys};
  const Given descriptors(launch.descriptors.data(), launch.descriptors.size(), false);
  run(kernel_of("fill_many"), launch.blocks, kThreads, &parameters, sizeof parameters);
}

void fill_emulated(const at::Tensor& self, std::vector<Fill> fills, const Source& source) {
  CudaFill job{};
  if (!source.key) {
    TORCH_CHECK(captured_seed != nullptr, "the emulated device has no generator: pass a key, or capture one");
    job.seed = captured_seed;
    job.offset = captured_offset;
    job.offset_in_graph = captured_in_graph;
  }
  for (const Fill& fill : fills) {
    job.fill = fill;
    job.fill.key = source.key.value_or(xinit::Key{0, 0});
    launch_one(launch_of(job));
  }
}

void fill_many_emulated(const at::Tensor& on, const std::vector<Fill>& fills) {
  for_each_launch(fills, launch_one, launch_many);
}

at::Tensor digest_emulated(const at::Tensor& self, const std::vector<Placed>& windows, const DigestKey& key) {
  const at::Tensor sums = at::zeros({2}, at::kLong);
  with_bits_of(dtype_of(self), [&](auto bits) {
    using Bits = decltype(bits);
    for (const Placed& placed : windows) {
      struct {
        Window window;
        const void* data;
        DigestKey key;
        void* sums;
      } parameters{placed.window, static_cast<const Bits*>(self.const_data_ptr()) + placed.offset, key,
                   sums.mutable_data_ptr()};
      const Given result(sums.data_ptr(), 16, true);
      const char letter = sizeof(Bits) == 1 ? 'h' : sizeof(Bits) == 2 ? 't' : sizeof(Bits) == 4 ? 'j' : 'm';
      run(kernel_of(std::string("digest_windowI") + letter + "E"),
          blocks_for(static_cast<uint64_t>(placed.window.rows) * static_cast<uint64_t>(placed.window.run), resident),
          kThreads, &parameters, sizeof parameters);
    }
  });
  return sums;
}

// ---- what tests say to it ----

const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);

// The same memory on the device, for as long as what is returned lives. How often each byte of its storage is stored to
// is counted there, if that is as long.
at::Tensor view(const at::Tensor& tensor, const at::Tensor& counts) {
  const auto& storage = tensor.storage();
  const bool counted = counts.numel() == static_cast<int64_t>(storage.nbytes());
  const auto given = std::make_shared<Given>(storage.data(), storage.nbytes(), true,
                                             counted ? counts.mutable_data_ptr<uint8_t>() : nullptr);
  return at::for_blob(tensor.data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .deleter([tensor, counts, given](void*) {})
      .target_device(kDevice)
      .options(tensor.options().device(kDevice))
      .make_tensor();
}

std::vector<std::string> forget() {
  chosen.clear();
  resident = 6 * 132;
  captured_seed = captured_offset = nullptr;
  return std::move(launched);
}

void capture(const at::Tensor& seed, const at::Tensor& offset, int64_t in_graph) {
  captured_seed = seed.const_data_ptr<int64_t>();
  captured_offset = offset.const_data_ptr<int64_t>();
  captured_in_graph = static_cast<uint64_t>(in_graph);
}

void run_raw(const std::string& name, int64_t blocks, int64_t threads, const at::Tensor& parameters) {
  run(kernel_of(name), static_cast<uint32_t>(blocks), static_cast<uint32_t>(threads), parameters.data_ptr(),
      parameters.nbytes());
}

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1>);

TORCH_LIBRARY_IMPL(xinit, PrivateUse1, m) { register_ops(m, {fill_emulated, fill_many_emulated, digest_emulated}); }

TORCH_LIBRARY(xinit_emulated, m) {
  m.def("view(Tensor tensor, Tensor counts) -> Tensor", view);
  m.def("forget() -> str[]", forget);
  m.def("hold(int blocks) -> ()", [](int64_t blocks) { resident = static_cast<uint64_t>(blocks); });
  m.def("choose(int[] threads) -> ()", [](std::vector<int64_t> threads) { chosen = std::move(threads); });
  m.def("capture(Tensor seed, Tensor offset, int in_graph) -> ()", capture);
  m.def("run(str kernel, int blocks, int threads, Tensor parameters) -> ()", run_raw);
}

}  // namespace machine
