// xinit from C++: weight initialisation in which every weight is a pure function of (seed, name, index).
#pragma once

namespace xinit {

// What this build is. cuda and cuda_arches are null where it is without CUDA.
struct BuildInfo {
  const char* version;
  int contract;
  const char *torch, *cuda, *cuda_arches, *compiler;
  const char* cpu_isa;  // in use: avx512, avx2 or baseline
};
BuildInfo build_info();

}  // namespace xinit
