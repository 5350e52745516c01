#include "services/router/random_ids.h"

#include <sys/random.h>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace hyserve::router {
namespace {

void Fill(void* out, size_t bytes) {
  // Up to 256 bytes are never cut short once the generator is seeded.
  if (getrandom(out, bytes, 0) != static_cast<ssize_t>(bytes))
    ABSL_RAW_LOG(FATAL, "getrandom failed");
}

}  // namespace

uint64_t RandomWord() {
  uint64_t word = 0;
  Fill(&word, sizeof(word));
  return word;
}

std::string RandomTransferId() {
  std::string id(16, '\0');
  Fill(id.data(), id.size());
  return id;
}

std::string RandomRequestId() {
  return absl::StrCat("req-", absl::BytesToHexString(RandomTransferId()));
}

}  // namespace hyserve::router
