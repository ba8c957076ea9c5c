#include "laws.h"

#include <c10/util/StringUtil.h>

#include <utility>

#include "transforms.h"

namespace xinit {
namespace {

template <int i>
Law law() {
  using Type = FurtherLaws::at<i>;
  Law law{Type::name, std::string(Type::name) + "_", {}, "", [](const double* parameters) {
            Distribution d = Type::make(parameters);
            d.kind = further_kind(i);
            return d;
          }};
  for (const Parameter& parameter : Type::parameters) {
    law.schema += c10::str(law.parameters.empty() ? "" : ", ", "float ", parameter.name, "=", parameter.initial);
    law.parameters.push_back(parameter.name);
  }
  return law;
}

template <int... i>
std::vector<Law> all(std::integer_sequence<int, i...>) {
  return {law<i>()...};
}

}  // namespace

const std::vector<Law>& further_laws() {
  static const std::vector<Law> laws = all(std::make_integer_sequence<int, FurtherLaws::count>());
  return laws;
}

const Law* find_law(std::string_view name) {
  for (const Law& law : further_laws())
    if (law.name == name) return &law;
  return nullptr;
}

}  // namespace xinit
