// Any bytes as messages of a peer: they either decode to something that encodes to the same bytes,
// or are refused; and whatever decodes changes the exporter's and importer's tables without
// breaking their invariants. The input is a list of messages, each with a length byte before it; a
// second pass repairs magic and checksum, so that what stands behind those checks is reached too.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kv_transfer/crc32c.h"
#include "kv_transfer/handoff_message.h"
#include "kv_transfer/import_table.h"
#include "kv_transfer/offer_table.h"

namespace hyserve::kv_transfer {
namespace {

constexpr int64_t kTokens = 200;  // 4 blocks
constexpr size_t kChecksumBytes = 4;

kv_cache::KvLayout Layout() {
  kv_cache::KvLayout layout;
  layout.full_layers = {0, 3};
  layout.num_kv_heads = layout.head_dim = layout.v_head_dim = 1;
  layout.slab_bytes = 40;
  layout.oracle_slots = {0};
  layout.selected_blocks = 2;
  return layout;
}

void Require(bool condition) {
  if (!condition) std::abort();
}

TransferId Id() {
  TransferId id;
  id.bytes.fill('h');
  return id;
}

// One exporter and one importer in the middle of a transfer.
class Tables {
 public:
  Tables() {
    const kv_cache::KvLayout layout = Layout();
    OfferTable::Config offer_config;
    offer_config.options.max_message_bytes = 1000;
    offer_config.layout = layout;
    offer_config.incarnation = 1;
    offers_ = std::make_unique<OfferTable>(offer_config, &offer_stats_);
    ImportTable::Config import_config;
    import_config.layout = layout;
    import_config.incarnation = 1;
    imports_ = std::make_unique<ImportTable>(import_config, &import_stats_);
    OfferTable::Actions offered;
    offers_->Offer(
        {.id = Id(), .epoch = 1, .num_tokens = kTokens, .blocks = {1, 2, 3, 4}, .slab = 0},
        absl::InfiniteDuration(), now_, offered);
    offers_->LayerReady(Id(), 0, 128, offered);
    ImportTable::Actions pulled;
    imports_->Pull({.id = Id(), .epoch = 1, .source = {"p", 1}, .num_tokens = kTokens,
                    .blocks = {1, 2, 3, 4}, .slab = 0},
                   kLane, absl::InfiniteDuration(), now_, pulled);
  }

  void Control(const ControlMessage& message) {
    OfferTable::Actions offered;
    offers_->OnControl(kLane, message, now_, offered);
    ImportTable::Actions pulled;
    imports_->OnControl(kLane, message, now_, pulled);
    Check(offered);
  }
  void Data(const DataHeader& header) {
    ImportTable::Actions actions;
    const auto landing =
        imports_->OnData(kLane, header, static_cast<size_t>(header.length), now_, actions);
    if (landing && landing->slab >= 0) {
      Require(landing->offset + landing->length <= Layout().slab_bytes);
    } else if (landing) {
      Require(landing->layer_slot < 2 && landing->block >= 1);
      Require(static_cast<size_t>(landing->block - 1) * Layout().slice_bytes() + landing->length <=
              4 * Layout().slice_bytes());
    }
    if (landing)
      imports_->OnReceived(landing->operation, absl::OkStatus(), header.crc, now_, actions);
    Check({});
  }

 private:
  static constexpr EndpointId kLane = 7;
  void Check(const OfferTable::Actions& offered) {
    for (const OfferTable::Action& action : offered) {
      if (const auto* send = std::get_if<OfferTable::SendData>(&action)) {
        OfferTable::Actions more;
        offers_->OnSent(send->operation, now_, more);
      }
    }
    now_ += absl::Milliseconds(700);
    OfferTable::Actions offer_actions;
    offers_->OnTimer(now_, offer_actions);
    ImportTable::Actions import_actions;
    imports_->OnTimer(now_, import_actions);
    Require(offers_->CheckInvariants().empty());
    Require(imports_->CheckInvariants().empty());
  }

  ClockTime now_ = absl::Seconds(1);
  TransferStats offer_stats_, import_stats_;
  std::unique_ptr<OfferTable> offers_;
  std::unique_ptr<ImportTable> imports_;
};

// Magic, version and checksum as a real message has them.
std::string Repair(std::string bytes) {
  const std::string model = Encode(DataHeader{});
  if (bytes.size() < 6 + kChecksumBytes) return bytes;
  bytes.replace(0, 6, model, 0, 6);
  const size_t content = bytes.size() - kChecksumBytes;
  const uint32_t crc = Crc32c(bytes.data(), content);
  for (size_t i = 0; i < kChecksumBytes; ++i) {
    bytes[content + i] = static_cast<char>(crc >> (8 * i) & 0xFF);
  }
  return bytes;
}

void Receive(Tables& tables, const std::string& bytes) {
  if (const auto message = DecodeControl(bytes); message.ok()) {
    Require(Encode(*message) == bytes);
    tables.Control(*message);
  }
  if (const auto header = DecodeDataHeader(bytes); header.ok()) {
    Require(Encode(*header) == bytes);
    tables.Data(*header);
  }
}

}  // namespace
}  // namespace hyserve::kv_transfer

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hyserve::kv_transfer;  // NOLINT: the entry point has to be global
  Tables plain, repaired;
  while (size > 0) {
    const size_t length = std::min<size_t>(data[0], size - 1);
    const std::string bytes(reinterpret_cast<const char*>(data + 1), length);
    data += 1 + length;
    size -= 1 + length;
    Receive(plain, bytes);
    Receive(repaired, Repair(bytes));
  }
  return 0;
}
