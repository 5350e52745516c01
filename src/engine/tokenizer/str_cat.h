// Concatenation for messages. Debian 12 builds abseil with its own string_view type, so
// absl::StrCat does not take std::string_view by itself.
#ifndef HYSERVE_ENGINE_TOKENIZER_STR_CAT_H_
#define HYSERVE_ENGINE_TOKENIZER_STR_CAT_H_

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace hyserve::tokenizer {

inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view FromAbsl(absl::string_view text) { return {text.data(), text.size()}; }

namespace internal {
template <class T>
decltype(auto) StrCatArgument(const T& value) {
  if constexpr (std::is_convertible_v<const T&, std::string_view>) {
    return ToAbsl(value);
  } else {
    return (value);
  }
}
}  // namespace internal

// As absl::StrCat, for std::string_view too. Pure and thread-safe.
template <class... Ts>
std::string StrCat(const Ts&... values) {
  return absl::StrCat(internal::StrCatArgument(values)...);
}

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_STR_CAT_H_
