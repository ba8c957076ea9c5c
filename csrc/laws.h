// The further laws of transforms.h, for what asks of them while it runs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "distribution.h"

namespace xinit {

struct Law {
  std::string name, op;
  std::vector<const char*> parameters;
  std::string schema;  // of the op's parameters
  Distribution (*make)(const double* parameters);
};
const std::vector<Law>& further_laws();
const Law* find_law(std::string_view name);  // nullptr if it is none of them

}  // namespace xinit
