// Text of messages. Debian's abseil has a string_view of its own, which std::string_view does not
// convert to.
#ifndef HYSERVE_ENGINE_MODEL_TEXT_H_
#define HYSERVE_ENGINE_MODEL_TEXT_H_

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace hyserve::model {

// absl::StrCat that also takes std::string_view.
template <typename... Parts>
std::string Cat(const Parts&... parts) {
  const auto piece = [](const auto& part) -> decltype(auto) {
    using Part = std::decay_t<decltype(part)>;
    if constexpr (std::is_same_v<Part, std::string_view>) {
      return absl::string_view(part.data(), part.size());
    } else {
      return (part);
    }
  };
  return absl::StrCat(piece(parts)...);
}

// As a view of abseil's.
inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_TEXT_H_
