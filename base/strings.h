// String building for code that passes std::string_view: Debian 12's abseil has a string_view type
// of its own, which does not convert from the standard one. Pure and thread-safe.
#ifndef HYSERVE_BASE_STRINGS_H_
#define HYSERVE_BASE_STRINGS_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace hyserve {

inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view ToStd(absl::string_view text) { return {text.data(), text.size()}; }

namespace internal {

template <typename T>
decltype(auto) StrCatArgument(const T& value) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    return ToAbsl(value);
  } else {
    return (value);
  }
}

}  // namespace internal

// As absl::StrCat and absl::StrAppend, for both kinds of string_view.
template <typename... Args>
std::string StrCat(const Args&... args) {
  return absl::StrCat(internal::StrCatArgument(args)...);
}
template <typename... Args>
void StrAppend(std::string* out, const Args&... args) {
  absl::StrAppend(out, internal::StrCatArgument(args)...);
}

// "149.1 GiB" or "3.5 MiB", for messages; rounded down.
inline std::string BytesText(size_t bytes) {
  const bool gib = bytes >= size_t{1} << 30;
  const size_t tenths = (bytes >> (gib ? 20 : 10)) * 10 / 1024;
  return absl::StrCat(tenths / 10, ".", tenths % 10, gib ? " GiB" : " MiB");
}

}  // namespace hyserve

#endif  // HYSERVE_BASE_STRINGS_H_
