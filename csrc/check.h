// Errors of arguments, with the offending value.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace bertgen {

// A RuntimeError of Python.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message(std::string{});  // its default constructor needs GCC 9 at run time, newer than torch does
  (message << ... << parts);
  throw Error(message.str());
}

// The arguments of `fail` are evaluated only where the condition is false.
#define BERTGEN_CHECK(condition, ...) \
  do {                                \
    if (!(condition)) ::bertgen::fail(__VA_ARGS__); \
  } while (false)

}  // namespace bertgen
