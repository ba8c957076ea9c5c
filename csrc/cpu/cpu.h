#pragma once

namespace xinit {

// The instruction set in use: avx512, avx2 or baseline.
const char* cpu_isa();

}  // namespace xinit
