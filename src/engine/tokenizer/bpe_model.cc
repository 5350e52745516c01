#include "engine/tokenizer/bpe_model.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace hyserve::tokenizer {
namespace {

// Longer words are cut here, so that positions fit 32 bits with room for a sentinel.
constexpr size_t kMaxWordBytes = size_t{1} << 30;
constexpr uint32_t kNone = 0xFFFFFFFF;

uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) |
         static_cast<uint32_t>(right);
}

}  // namespace

BpeModel::BpeModel(BpeTables tables)
    : pieces_(std::move(tables.pieces)),
      byte_ids_(tables.byte_ids),
      ignore_merges_(tables.ignore_merges) {
  merges_.reserve(tables.merges.size());
  for (size_t rank = 0; rank < tables.merges.size(); ++rank) {
    const BpeMerge& merge = tables.merges[rank];
    merges_.emplace(PairKey(merge.left, merge.right),
                    RankedMerge{static_cast<uint32_t>(rank), merge.result});
  }
  piece_ids_.reserve(pieces_.size());
  whole_words_.reserve(pieces_.size());
  Workspace workspace;
  std::vector<int32_t> ids;
  for (size_t id = 0; id < pieces_.size(); ++id) {
    const std::string& piece = pieces_[id];
    if (piece.empty()) continue;
    max_piece_bytes_ = std::max(max_piece_bytes_, piece.size());
    piece_ids_.emplace(piece, static_cast<int32_t>(id));
    ids.clear();
    if (!ignore_merges_) {
      if (piece.size() <= kSmallWord) {
        MergeSmall(piece, &ids);
      } else {
        MergeLarge(piece, &workspace, &ids);
      }
      if (ids.size() != 1 || ids[0] != static_cast<int32_t>(id)) continue;
    }
    whole_words_.emplace(piece, static_cast<int32_t>(id));
  }
}

int32_t BpeModel::Find(std::string_view bytes) const {
  const auto it = piece_ids_.find(bytes);
  return it == piece_ids_.end() ? -1 : it->second;
}

BpeModel::RankedMerge BpeModel::Lookup(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? RankedMerge{} : it->second;
}

void BpeModel::EncodeWord(std::string_view word, Workspace* workspace,
                          std::vector<int32_t>* out) const {
  if (word.size() <= max_piece_bytes_) {
    const auto it = whole_words_.find(word);
    if (it != whole_words_.end()) {
      out->push_back(it->second);
      return;
    }
  }
  if (word.size() <= kSmallWord) {
    MergeSmall(word, out);
    return;
  }
  for (size_t begin = 0; begin < word.size(); begin += kMaxWordBytes) {
    MergeLarge(word.substr(begin, kMaxWordBytes), workspace, out);
  }
}

void BpeModel::MergeSmall(std::string_view word, std::vector<int32_t>* out) const {
  size_t count = word.size();
  std::array<int32_t, kSmallWord> ids;
  std::array<RankedMerge, kSmallWord> merge;  // merge[i] joins ids[i] and ids[i + 1]
  for (size_t i = 0; i < count; ++i) ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i + 1 < count; ++i) merge[i] = Lookup(ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merge[i].rank < merge[best].rank) best = i;
    }
    if (merge[best].rank == kNoRank) break;
    ids[best] = merge[best].result;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      merge[i] = merge[i + 1];
    }
    --count;
    if (best + 1 < count) merge[best] = Lookup(ids[best], ids[best + 1]);
    if (best > 0) merge[best - 1] = Lookup(ids[best - 1], ids[best]);
  }
  out->insert(out->end(), ids.begin(), ids.begin() + static_cast<ptrdiff_t>(count));
}

// A doubly linked list of symbols and a heap of (rank, position). An entry is stale when the pair
// at its position is no longer the one it was pushed for; a pair has one rank, so comparing ranks
// finds that out. Each merge pushes at most two entries: pushes <= 3 n.
void BpeModel::MergeLarge(std::string_view word, Workspace* workspace,
                          std::vector<int32_t>* out) const {
  const uint32_t count = static_cast<uint32_t>(word.size());
  auto& ids = workspace->ids;
  auto& previous = workspace->previous;
  auto& next = workspace->next;
  auto& queue = workspace->queue;
  ids.resize(count);
  previous.resize(count);
  next.resize(count);
  queue.clear();
  for (uint32_t i = 0; i < count; ++i) {
    ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
    previous[i] = i == 0 ? kNone : i - 1;
    next[i] = i + 1 == count ? kNone : i + 1;
  }
  const auto entry = [](uint32_t rank, uint32_t pos) {
    return (static_cast<uint64_t>(rank) << 32) | pos;
  };
  for (uint32_t i = 0; i + 1 < count; ++i) {
    const uint32_t rank = Lookup(ids[i], ids[i + 1]).rank;
    if (rank != kNoRank) queue.push_back(entry(rank, i));
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  workspace->stats.queue_pushes += queue.size();
  const auto push = [&](uint32_t pos) {
    const uint32_t rank = Lookup(ids[pos], ids[next[pos]]).rank;
    if (rank == kNoRank) return;
    queue.push_back(entry(rank, pos));
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
    ++workspace->stats.queue_pushes;
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    ++workspace->stats.queue_pops;
    const uint32_t pos = static_cast<uint32_t>(top);
    if (ids[pos] < 0 || next[pos] == kNone) continue;
    const uint32_t right = next[pos];
    const RankedMerge merge = Lookup(ids[pos], ids[right]);
    if (merge.rank != static_cast<uint32_t>(top >> 32)) continue;
    ids[pos] = merge.result;
    ids[right] = -1;
    next[pos] = next[right];
    if (next[pos] != kNone) {
      previous[next[pos]] = pos;
      push(pos);
    }
    if (previous[pos] != kNone) push(previous[pos]);
  }
  for (uint32_t pos = 0; pos != kNone; pos = next[pos]) out->push_back(ids[pos]);
}

}  // namespace hyserve::tokenizer
