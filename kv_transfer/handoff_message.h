// What Exporter and Importer say to each other, as bytes. Every message starts with the same
// envelope and ends with a CRC32C of all bytes before it; all numbers are little-endian and of
// fixed width.
//
//   to the exporter   kPull, kRenew, kCommit, kCancel
//   to the importer   kFinal, kFailed, kRenewAck, kCommitAck; data headers kBlocks, kSlab
//
// Decoding checks everything that can be checked without state (magic, version, kind, exact length,
// checksum, counts against the bytes that are there); whether a message belongs to anything is the
// tables' business. Pure functions.
#ifndef HYSERVE_KV_TRANSFER_HANDOFF_MESSAGE_H_
#define HYSERVE_KV_TRANSFER_HANDOFF_MESSAGE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "kv_transfer/ticket.h"

namespace hyserve::kv_transfer {

inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr int64_t kMaxBlocksPerTransfer = int64_t{1} << 20;  // 67 million tokens
inline constexpr size_t kMaxSelectionIndices = size_t{1} << 16;
inline constexpr size_t kMaxTrailerBytes = size_t{1} << 16;

enum class MessageKind : uint16_t {
  kPull = 1,
  kRenew = 2,
  kCommit = 3,
  kCancel = 4,
  kFinal = 5,
  kFailed = 6,
  kRenewAck = 7,
  kCommitAck = 8,
  kBlocks = 9,
  kSlab = 10,
};

// Who talks to whom about what. Both incarnations are checked on arrival, so a message of a process
// that was replaced, or for one, changes nothing.
struct Envelope {
  TransferId id;
  uint32_t epoch = 0;
  uint64_t sender_incarnation = 0;
  uint64_t receiver_incarnation = 0;
  uint64_t generation = 0;  // of the pull; drawn by the importer, echoed by the exporter
  bool operator==(const Envelope&) const = default;
};

// Bit i: the receiver's block i does not follow its block i - 1 in memory. Bit 0 is always set. No
// address and no block number travels, only where messages must be cut.
class BreakMap {
 public:
  BreakMap() = default;
  explicit BreakMap(const std::vector<int32_t>& physical_blocks);
  // Of memory that may be as scattered as it likes: messages need not be cut for it.
  static BreakMap Whole(int64_t num_blocks);
  static BreakMap FromBytes(int64_t num_blocks,
                            std::string_view bytes);  // REQUIRES: the right size

  int64_t num_blocks() const { return num_blocks_; }
  bool BreakBefore(int64_t block) const {
    return (static_cast<unsigned char>(bits_[block / 8]) >> (block % 8) & 1) != 0;
  }
  const std::string& bytes() const { return bits_; }
  bool operator==(const BreakMap&) const = default;

 private:
  int64_t num_blocks_ = 0;
  std::string bits_;
};

struct PullBody {
  uint64_t layout_hash = 0;
  uint64_t num_tokens = 0;
  BreakMap breaks;
  bool operator==(const PullBody&) const = default;
};
struct RenewBody {
  bool operator==(const RenewBody&) const = default;
};
struct CommitBody {
  bool operator==(const CommitBody&) const = default;
};
struct CancelBody {
  bool release = false;  // true: nobody will pull again; false: only this pull ends
  bool operator==(const CancelBody&) const = default;
};
struct FinalBody {
  uint64_t layout_hash = 0;
  uint64_t num_tokens = 0;
  std::vector<int32_t> selection;
  std::string trailer;
  bool operator==(const FinalBody&) const = default;
};
enum class Failure : uint32_t {
  kUnknownTransfer = 1,
  kLayoutMismatch = 2,
  kStaleEpoch = 3,
  kStaleIncarnation = 4,
  kAborted = 5,
  kOverloaded = 6,
  kLeaseExpired = 7,
};
struct FailedBody {
  Failure failure = Failure::kUnknownTransfer;
  bool operator==(const FailedBody&) const = default;
};
struct RenewAckBody {
  bool operator==(const RenewAckBody&) const = default;
};
struct CommitAckBody {
  bool operator==(const CommitAckBody&) const = default;
};

using ControlBody = std::variant<PullBody, RenewBody, CommitBody, CancelBody, FinalBody, FailedBody,
                                 RenewAckBody, CommitAckBody>;
struct ControlMessage {
  ControlMessage(const Envelope& e, ControlBody b);
  Envelope envelope;
  ControlBody body;
  bool operator==(const ControlMessage&) const = default;
};

// Before every data message. kBlocks: blocks [first_block, first_block + num_blocks) of one layer
// slot; kSlab: bytes [offset, offset + length) of the slab.
struct DataHeader {
  Envelope envelope;
  MessageKind kind = MessageKind::kBlocks;
  uint32_t layer_slot = 0;
  uint32_t first_block = 0;
  uint32_t num_blocks = 0;
  uint64_t offset = 0;
  uint64_t length = 0;  // payload bytes
  uint32_t crc = 0;     // of the payload; 0 when checksums are off
  bool operator==(const DataHeader&) const = default;
};

// REQUIRES: counts within the limits above.
std::string Encode(const ControlMessage& message);
std::string Encode(const DataHeader& header);

// INVALID_ARGUMENT for anything but the exact encoding of a message.
absl::StatusOr<ControlMessage> DecodeControl(std::string_view bytes);
absl::StatusOr<DataHeader> DecodeDataHeader(std::string_view bytes);

// 64 bits of the layout's fingerprint, so that every message can carry it.
uint64_t LayoutHash(const kv_cache::KvLayout& layout);

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_HANDOFF_MESSAGE_H_
