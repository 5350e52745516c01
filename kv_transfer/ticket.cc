#include "kv_transfer/ticket.h"

#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"

namespace hyserve::kv_transfer {

absl::StatusOr<TransferId> TransferId::FromBytes(std::string_view bytes) {
  TransferId id;
  if (bytes.size() != id.bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a transfer id has 16 bytes, this one ", bytes.size()));
  }
  std::memcpy(id.bytes.data(), bytes.data(), bytes.size());
  if (id == TransferId{}) return absl::InvalidArgumentError("a transfer id may not be all zeros");
  return id;
}

TransferId TransferId::Random() {
  std::random_device device;  // the kernel's generator
  TransferId id;
  do {
    for (size_t i = 0; i < id.bytes.size(); i += sizeof(uint32_t)) {
      const uint32_t word = device();
      std::memcpy(id.bytes.data() + i, &word, sizeof(word));
    }
  } while (id == TransferId{});
  return id;
}

std::string TransferId::ToBytes() const { return std::string(bytes.begin(), bytes.end()); }

std::string TransferId::Short() const {
  return absl::StrCat(absl::Hex(bytes[0], absl::kZeroPad2), absl::Hex(bytes[1], absl::kZeroPad2),
                      absl::Hex(bytes[2], absl::kZeroPad2), absl::Hex(bytes[3], absl::kZeroPad2));
}

std::string_view Name(ReleaseReason reason) {
  switch (reason) {
    case ReleaseReason::kCommitted: return "committed";
    case ReleaseReason::kLeaseExpired: return "lease_expired";
    case ReleaseReason::kAborted: return "aborted";
    case ReleaseReason::kPeerLost: return "peer_lost";
  }
  return "unknown";
}

}  // namespace hyserve::kv_transfer
