// Which kernel is launched, over how much work and with which parameters: plain C++, so that tests give what a GPU is
// given to one that is emulated.
#pragma once

#include <cstring>
#include <map>
#include <vector>

#include "fill_body.h"

namespace xinit {

constexpr int kThreads = 256;

// Passed by value, so that the round keys are read from constant memory.
struct CudaLaunch {
  CudaFill job;
  Schedule keys;
};

// As many thread blocks as there is work for, and at most what the device holds at a time: threads loop over the rest.
inline unsigned blocks_for(uint64_t work, uint64_t resident) {
  const uint64_t wanted = (work + kThreads - 1) / kThreads;
  return static_cast<unsigned>(wanted < resident ? wanted : resident);
}

// Of a contiguous fill the groups, of another one the units.
inline uint64_t work_of(const CudaFill& job) { return job.groups > 0 ? job.groups : job.fill.window.units(); }

// One fill: by fill_contiguous if it has groups, or else by fill_window.
inline CudaLaunch launch_of(CudaFill job) {
  if (job.seed == nullptr) share_out(job, size_of(job.fill.dtype));
  return {job, schedule(job.fill.key.seed)};
}

// Fills of contiguous rows with one seed, by fill_many: the fills themselves, and then the first block of each and
// their number.
struct ManyLaunch {
  std::vector<char> descriptors;
  uint32_t fills, blocks;
  Schedule keys;
  size_t first_block() const { return fills * sizeof(CudaFill); }  // where these numbers begin
};

inline ManyLaunch many_launch_of(uint64_t seed, const std::vector<CudaFill>& jobs) {
  std::vector<uint32_t> first_block{0};
  for (const CudaFill& job : jobs)
    first_block.push_back(first_block.back() +
                          static_cast<uint32_t>((work_of(job) + kGroupsPerBlock - 1) / kGroupsPerBlock));
  ManyLaunch launch{{}, static_cast<uint32_t>(jobs.size()), first_block.back(), schedule(seed)};
  launch.descriptors.resize(launch.first_block() + first_block.size() * sizeof(uint32_t));
  std::memcpy(launch.descriptors.data(), jobs.data(), launch.first_block());
  std::memcpy(launch.descriptors.data() + launch.first_block(), first_block.data(),
              first_block.size() * sizeof(uint32_t));
  return launch;
}

// Calls one(CudaLaunch) for each fill that has to be launched alone, and many(ManyLaunch) for those of each seed that
// need not.
template <class One, class Many>
void for_each_launch(const std::vector<Fill>& fills, One&& one, Many&& many) {
  std::map<uint64_t, std::vector<CudaFill>> by_seed;
  for (const Fill& fill : fills) {
    CudaFill job{};
    job.fill = fill;
    const CudaLaunch launch = launch_of(job);
    if (fill.window.ndim == 0 && fill.window.run_stride == 1)
      by_seed[fill.key.seed].push_back(launch.job);
    else
      one(launch);
  }
  for (const auto& [seed, jobs] : by_seed) many(many_launch_of(seed, jobs));
}

}  // namespace xinit
