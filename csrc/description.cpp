#include "description.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>

#include "laws.h"

namespace xinit {
namespace {

struct Reader {
  std::string_view rest;

  bool take(std::string_view token) {
    const bool there = rest.substr(0, token.size()) == token;
    if (there) rest.remove_prefix(token.size());
    return there;
  }
  std::string_view word() {
    const std::string_view found = rest.substr(0, rest.find_first_of("(=,)"));
    rest.remove_prefix(found.size());
    return found;
  }
  template <class T>
  bool number(T& value) {
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (error != std::errc()) return false;
    rest.remove_prefix(static_cast<size_t>(end - rest.data()));
    return true;
  }
  Shape numbers() {
    Shape found;
    for (int64_t value; number(value); take(" ")) found.push_back(value);
    return found;
  }
};

size_t parameters_of(std::string_view distribution) {
  if (distribution == "truncated_normal") return 4;
  if (const Law* law = find_law(distribution)) return law->parameters.size();
  return distribution == "constant" ? 1 : 2;
}

bool read_item(Reader& reader, Description& to) {
  double parameter;
  if (reader.number(parameter)) {
    to.parameters.push_back(parameter);
    return true;
  }
  const std::string_view word = reader.word();
  if (word.substr(0, 4) == "fan_") {
    to.fan = word;
    return true;
  }
  if (!reader.take("=")) return false;
  if (word == "groups") return reader.number(to.axes.groups);
  if (word != "in" && word != "out" && word != "batch") return false;
  (word == "in" ? to.axes.in : word == "out" ? to.axes.out : to.axes.batch) = reader.numbers();
  return true;
}

bool read(Reader reader, Description& to) {
  to.name = reader.word();
  if (!reader.take("(")) return false;
  do {
    if (!read_item(reader, to)) return false;
  } while (reader.take(", "));
  return reader.rest == ")" && to.parameters.size() == (to.fan.empty() ? parameters_of(to.name) : 1);
}

}  // namespace

Description parse_description(const char* op, std::string_view text) {
  Description description;
  TORCH_CHECK_VALUE(read({text}, description), op,
                    ": a distribution is described as in uniform(a, b), normal(mean, std), truncated_normal(mean, std, "
                    "a, b), constant(value) or normal(gain, fan_in, in=1, out=0, batch=, groups=1), but found ",
                    text);
  return description;
}

}  // namespace xinit
