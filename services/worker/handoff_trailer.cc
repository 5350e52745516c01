#include "services/worker/handoff_trailer.h"

#include <array>

#include "base/strings.h"
#include "kv_transfer/crc32c.h"

namespace hyserve::worker {
namespace {

constexpr uint32_t kVersion = 1;
// version, first token, prompt tokens, checksum of the prompt: little-endian words.
constexpr size_t kWords = 4;
constexpr size_t kTrailerBytes = kWords * sizeof(uint32_t);

uint32_t Checksum(std::span<const int32_t> prompt) {
  return kv_transfer::Crc32c(prompt.data(), prompt.size_bytes());
}

}  // namespace

std::string EncodeTrailer(std::span<const int32_t> prompt, int32_t first_token) {
  const std::array<uint32_t, kWords> words = {kVersion, static_cast<uint32_t>(first_token),
                                              static_cast<uint32_t>(prompt.size()),
                                              Checksum(prompt)};
  std::string bytes;
  for (const uint32_t word : words) {
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(word >> shift));
  }
  return bytes;
}

absl::StatusOr<int32_t> DecodeTrailer(std::string_view trailer, std::span<const int32_t> prompt) {
  if (trailer.size() != kTrailerBytes) {
    return absl::DataLossError(StrCat("the trailer has ", trailer.size(), " bytes, not ",
                                      kTrailerBytes));
  }
  std::array<uint32_t, kWords> words = {};
  for (size_t i = 0; i < kTrailerBytes; ++i) {
    words[i / 4] |= static_cast<uint32_t>(static_cast<unsigned char>(trailer[i])) << (i % 4 * 8);
  }
  if (words[0] != kVersion) {
    return absl::DataLossError(StrCat("trailer of version ", words[0]));
  }
  if (words[2] != prompt.size() || words[3] != Checksum(prompt)) {
    return absl::DataLossError("the hand-off belongs to another prompt");
  }
  return static_cast<int32_t>(words[1]);
}

}  // namespace hyserve::worker
