#include <torch/version.h>
#include <xinit/xinit.h>

#include "cpu/cpu.h"

#ifndef XINIT_CUDA
#define XINIT_CUDA nullptr
#define XINIT_CUDA_ARCHES nullptr
#endif

namespace xinit {
namespace {

// What xinit/_load.py looks for in the file, before it is loaded.
[[gnu::used]] const char kMark[] = "libxinit " XINIT_VERSION " built with torch " TORCH_VERSION;

}  // namespace

BuildInfo build_info() {
  return {XINIT_VERSION, 1, TORCH_VERSION, XINIT_CUDA, XINIT_CUDA_ARCHES, __VERSION__, cpu_isa()};
}

}  // namespace xinit
