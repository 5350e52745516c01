#include "kv_transfer/handoff_message.h"

#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kv_transfer/crc32c.h"

namespace hyserve::kv_transfer {
namespace {

constexpr uint32_t kMagic = 0x48764B48;
constexpr size_t kChecksumBytes = sizeof(uint32_t);

class Writer {
 public:
  template <typename T>
  void Put(T value) {
    static_assert(std::is_unsigned_v<T>);
    for (size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
    }
  }
  void PutBytes(std::string_view bytes) { bytes_.append(bytes); }
  std::string Finish() && {
    Put(Crc32c(bytes_.data(), bytes_.size()));
    return std::move(bytes_);
  }

 private:
  std::string bytes_;
};

// Reads never go past the end: after the first failure everything reads as zero.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  T Get() {
    static_assert(std::is_unsigned_v<T>);
    const std::string_view raw = GetBytes(sizeof(T));
    T value = 0;
    for (size_t i = 0; i < raw.size(); ++i) {
      value = static_cast<T>(value | static_cast<T>(static_cast<unsigned char>(raw[i])) << (8 * i));
    }
    return value;
  }
  std::string_view GetBytes(size_t count) {
    if (failed_ || count > bytes_.size()) {
      failed_ = true;
      return {};
    }
    const std::string_view result = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return result;
  }
  bool AtEnd() const { return !failed_ && bytes_.empty(); }
  bool failed() const { return failed_; }

 private:
  std::string_view bytes_;
  bool failed_ = false;
};

void PutEnvelope(Writer& writer, MessageKind kind, const Envelope& envelope) {
  writer.Put(kMagic);
  writer.Put(kProtocolVersion);
  writer.Put(static_cast<uint16_t>(kind));
  writer.PutBytes(std::string_view(reinterpret_cast<const char*>(envelope.id.bytes.data()),
                                   envelope.id.bytes.size()));
  writer.Put(envelope.epoch);
  writer.Put(envelope.sender_incarnation);
  writer.Put(envelope.receiver_incarnation);
  writer.Put(envelope.generation);
}

struct Opened {
  Reader body;
  MessageKind kind;
  Envelope envelope;
};

absl::StatusOr<Opened> Open(std::string_view bytes) {
  if (bytes.size() < kChecksumBytes) return absl::InvalidArgumentError("message too short");
  const std::string_view content = bytes.substr(0, bytes.size() - kChecksumBytes);
  const auto sum = Reader(bytes.substr(content.size())).Get<uint32_t>();
  Opened opened{Reader(content), MessageKind::kPull, {}};
  Reader& reader = opened.body;
  if (reader.Get<uint32_t>() != kMagic) return absl::InvalidArgumentError("not a hand-off message");
  const auto version = reader.Get<uint16_t>();
  if (version != kProtocolVersion) {
    return absl::InvalidArgumentError(absl::StrCat("hand-off protocol version ", version));
  }
  opened.kind = static_cast<MessageKind>(reader.Get<uint16_t>());
  const std::string_view id = reader.GetBytes(opened.envelope.id.bytes.size());
  opened.envelope.epoch = reader.Get<uint32_t>();
  opened.envelope.sender_incarnation = reader.Get<uint64_t>();
  opened.envelope.receiver_incarnation = reader.Get<uint64_t>();
  opened.envelope.generation = reader.Get<uint64_t>();
  if (reader.failed()) return absl::InvalidArgumentError("message too short");
  std::memcpy(opened.envelope.id.bytes.data(), id.data(), id.size());
  if (sum != Crc32c(content.data(), content.size())) {
    return absl::InvalidArgumentError("message checksum");
  }
  return opened;
}

absl::StatusOr<PullBody> DecodePull(Reader& reader) {
  PullBody body;
  body.layout_hash = reader.Get<uint64_t>();
  body.num_tokens = reader.Get<uint64_t>();
  const auto num_blocks = reader.Get<uint32_t>();
  if (num_blocks == 0 || num_blocks > kMaxBlocksPerTransfer) {
    return absl::InvalidArgumentError("pull: number of blocks");
  }
  const std::string_view bits = reader.GetBytes((num_blocks + 7) / 8);
  if (reader.failed() || (bits[0] & 1) == 0) return absl::InvalidArgumentError("pull: breaks");
  if (num_blocks % 8 != 0 && static_cast<unsigned char>(bits.back()) >> (num_blocks % 8) != 0) {
    return absl::InvalidArgumentError("pull: breaks beyond the end");
  }
  body.breaks = BreakMap::FromBytes(num_blocks, bits);
  return body;
}

absl::StatusOr<FinalBody> DecodeFinal(Reader& reader) {
  FinalBody body;
  body.layout_hash = reader.Get<uint64_t>();
  body.num_tokens = reader.Get<uint64_t>();
  const auto num_indices = reader.Get<uint32_t>();
  const auto trailer_bytes = reader.Get<uint32_t>();
  if (num_indices > kMaxSelectionIndices || trailer_bytes > kMaxTrailerBytes) {
    return absl::InvalidArgumentError("final: counts");
  }
  body.selection.resize(num_indices);
  for (int32_t& index : body.selection) index = static_cast<int32_t>(reader.Get<uint32_t>());
  body.trailer = std::string(reader.GetBytes(trailer_bytes));
  return body;
}

absl::StatusOr<FailedBody> DecodeFailed(Reader& reader) {
  const auto failure = reader.Get<uint32_t>();
  if (failure < static_cast<uint32_t>(Failure::kUnknownTransfer) ||
      failure > static_cast<uint32_t>(Failure::kLeaseExpired)) {
    return absl::InvalidArgumentError("failed: unknown code");
  }
  return FailedBody{static_cast<Failure>(failure)};
}

absl::StatusOr<CancelBody> DecodeCancel(Reader& reader) {
  const auto release = reader.Get<uint32_t>();
  if (release > 1) return absl::InvalidArgumentError("cancel: flag");
  return CancelBody{release == 1};
}

template <typename Body>
absl::Status Set(ControlMessage& message, absl::StatusOr<Body> body) {
  if (!body.ok()) return body.status();
  message.body = *std::move(body);
  return absl::OkStatus();
}

struct BodyWriter {
  Writer& writer;
  const Envelope& envelope;

  void operator()(const PullBody& body) const {
    PutEnvelope(writer, MessageKind::kPull, envelope);
    writer.Put(body.layout_hash);
    writer.Put(body.num_tokens);
    writer.Put(static_cast<uint32_t>(body.breaks.num_blocks()));
    writer.PutBytes(body.breaks.bytes());
  }
  void operator()(const RenewBody&) const { PutEnvelope(writer, MessageKind::kRenew, envelope); }
  void operator()(const CommitBody&) const { PutEnvelope(writer, MessageKind::kCommit, envelope); }
  void operator()(const CancelBody& body) const {
    PutEnvelope(writer, MessageKind::kCancel, envelope);
    writer.Put(static_cast<uint32_t>(body.release ? 1 : 0));
  }
  void operator()(const FinalBody& body) const {
    PutEnvelope(writer, MessageKind::kFinal, envelope);
    writer.Put(body.layout_hash);
    writer.Put(body.num_tokens);
    writer.Put(static_cast<uint32_t>(body.selection.size()));
    writer.Put(static_cast<uint32_t>(body.trailer.size()));
    for (int32_t index : body.selection) writer.Put(static_cast<uint32_t>(index));
    writer.PutBytes(body.trailer);
  }
  void operator()(const FailedBody& body) const {
    PutEnvelope(writer, MessageKind::kFailed, envelope);
    writer.Put(static_cast<uint32_t>(body.failure));
  }
  void operator()(const RenewAckBody&) const {
    PutEnvelope(writer, MessageKind::kRenewAck, envelope);
  }
  void operator()(const CommitAckBody&) const {
    PutEnvelope(writer, MessageKind::kCommitAck, envelope);
  }
};

}  // namespace

ControlMessage::ControlMessage(const Envelope& e, ControlBody b)
    : envelope(e), body(std::move(b)) {}

BreakMap::BreakMap(const std::vector<int32_t>& physical_blocks)
    : num_blocks_(static_cast<int64_t>(physical_blocks.size())),
      bits_((physical_blocks.size() + 7) / 8, '\0') {
  for (size_t i = 0; i < physical_blocks.size(); ++i) {
    if (i == 0 || physical_blocks[i] != physical_blocks[i - 1] + 1) {
      bits_[i / 8] = static_cast<char>(bits_[i / 8] | 1 << (i % 8));
    }
  }
}

BreakMap BreakMap::Whole(int64_t num_blocks) {
  BreakMap map;
  map.num_blocks_ = num_blocks;
  map.bits_.assign((static_cast<size_t>(num_blocks) + 7) / 8, '\0');
  if (num_blocks > 0) map.bits_[0] = 1;
  return map;
}

BreakMap BreakMap::FromBytes(int64_t num_blocks, std::string_view bytes) {
  BreakMap map;
  map.num_blocks_ = num_blocks;
  map.bits_ = std::string(bytes);
  return map;
}

std::string Encode(const ControlMessage& message) {
  Writer writer;
  std::visit(BodyWriter{writer, message.envelope}, message.body);
  return std::move(writer).Finish();
}

std::string Encode(const DataHeader& header) {
  Writer writer;
  PutEnvelope(writer, header.kind, header.envelope);
  writer.Put(header.layer_slot);
  writer.Put(header.first_block);
  writer.Put(header.num_blocks);
  writer.Put(header.offset);
  writer.Put(header.length);
  writer.Put(header.crc);
  return std::move(writer).Finish();
}

absl::StatusOr<ControlMessage> DecodeControl(std::string_view bytes) {
  absl::StatusOr<Opened> opened = Open(bytes);
  if (!opened.ok()) return opened.status();
  ControlMessage message(opened->envelope, RenewBody{});
  Reader& reader = opened->body;
  absl::Status status;
  switch (opened->kind) {
    case MessageKind::kPull: status = Set(message, DecodePull(reader)); break;
    case MessageKind::kRenew: message.body = RenewBody{}; break;
    case MessageKind::kCommit: message.body = CommitBody{}; break;
    case MessageKind::kCancel: status = Set(message, DecodeCancel(reader)); break;
    case MessageKind::kFinal: status = Set(message, DecodeFinal(reader)); break;
    case MessageKind::kFailed: status = Set(message, DecodeFailed(reader)); break;
    case MessageKind::kRenewAck: message.body = RenewAckBody{}; break;
    case MessageKind::kCommitAck: message.body = CommitAckBody{}; break;
    default: status = absl::InvalidArgumentError("unknown kind of control message");
  }
  if (!status.ok()) return status;
  if (!reader.AtEnd()) return absl::InvalidArgumentError("message length");
  return message;
}

absl::StatusOr<DataHeader> DecodeDataHeader(std::string_view bytes) {
  absl::StatusOr<Opened> opened = Open(bytes);
  if (!opened.ok()) return opened.status();
  DataHeader header;
  header.envelope = opened->envelope;
  header.kind = opened->kind;
  if (header.kind != MessageKind::kBlocks && header.kind != MessageKind::kSlab) {
    return absl::InvalidArgumentError("unknown kind of data message");
  }
  Reader& reader = opened->body;
  header.layer_slot = reader.Get<uint32_t>();
  header.first_block = reader.Get<uint32_t>();
  header.num_blocks = reader.Get<uint32_t>();
  header.offset = reader.Get<uint64_t>();
  header.length = reader.Get<uint64_t>();
  header.crc = reader.Get<uint32_t>();
  if (!reader.AtEnd()) return absl::InvalidArgumentError("header length");
  return header;
}

uint64_t LayoutHash(const kv_cache::KvLayout& layout) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a; both sides are ours, collisions are not sought
  for (const char c : layout.Fingerprint()) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash;
}

}  // namespace hyserve::kv_transfer
