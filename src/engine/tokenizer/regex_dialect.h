// Translation of the regular expressions in tokenizer.json files to PCRE2.
//
// Those expressions are written for Oniguruma. The dialects agree on most of what tokenizers use
// and differ silently in places (which code points \s holds, what \p{Han} means, nested classes,
// possessive bounds). This translator passes what is the same, rewrites what differs, and refuses
// everything else with the offset of the offending byte. Accepted:
//   literals, `|`, `(...)`, `(?:...)`, `(?=...)`, `(?!...)`, `(?>...)`, `(?i:...)`
//   classes with ranges and negation (not nested, no `&&`, no POSIX brackets)
//   \s \S \d \D \r \n \t \f \v \\ and escaped punctuation
//   \p{X} \P{X} \p{^X} with X a general category or one of the scripts in the .cc file
//   * + ? {m} {m,} {m,n}, lazy (`?`); possessive (`+`) after * + ? only
#ifndef HYSERVE_ENGINE_TOKENIZER_REGEX_DIALECT_H_
#define HYSERVE_ENGINE_TOKENIZER_REGEX_DIALECT_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace hyserve::tokenizer {

// Returns the PCRE2 pattern (for PCRE2_UTF | PCRE2_UCP), or InvalidArgument with the reason.
// Also refuses a quantified group that itself contains an unbounded quantifier, except an atomic
// one, because such patterns backtrack exponentially. Pure and thread-safe.
absl::StatusOr<std::string> TranslateRegex(std::string_view pattern);

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_REGEX_DIALECT_H_
