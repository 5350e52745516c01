// Byte-pair encoding of one word: repeatedly merge the adjacent pair of lowest rank, leftmost
// first (Sennrich et al. 2016, over bytes as in GPT-2).
#ifndef HYSERVE_ENGINE_TOKENIZER_BPE_MODEL_H_
#define HYSERVE_ENGINE_TOKENIZER_BPE_MODEL_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace hyserve::tokenizer {

// One merge, in the order of the file: rank = position.
struct BpeMerge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t result = 0;
};

// What the loader has checked: see BpeModel's constructor.
struct BpeTables {
  std::vector<std::string> pieces;        // [vocab_size] bytes of each piece; "" = not reachable
  std::array<int32_t, 256> byte_ids{};    // id of each single byte
  std::vector<BpeMerge> merges;           // [num_merges]
  bool ignore_merges = false;             // a word that is a piece is that piece, merges or not
};

// Work of EncodeWord, for tests of its complexity.
struct BpeStats {
  uint64_t queue_pushes = 0;
  uint64_t queue_pops = 0;
};

// Immutable and thread-safe; a Workspace belongs to one thread at a time.
class BpeModel {
 public:
  struct Workspace {
    std::vector<int32_t> ids;
    std::vector<uint32_t> previous;
    std::vector<uint32_t> next;
    std::vector<uint64_t> queue;
    BpeStats stats;
  };

  // REQUIRES: ids inside [0, pieces.size()), no piece twice (except ""), no merge pair twice.
  explicit BpeModel(BpeTables tables);
  BpeModel(const BpeModel&) = delete;
  BpeModel& operator=(const BpeModel&) = delete;

  // Appends the ids of `word` to `out`. O(n log n) in its length; words of up to kSmallWord bytes
  // and words that are themselves tokens take a faster path.
  void EncodeWord(std::string_view word, Workspace* workspace, std::vector<int32_t>* out) const;

  // -1 if no piece has these bytes.
  int32_t Find(std::string_view bytes) const;

 private:
  static constexpr size_t kSmallWord = 24;
  static constexpr uint32_t kNoRank = 0xFFFFFFFF;
  struct RankedMerge {
    uint32_t rank = kNoRank;
    int32_t result = -1;
  };

  RankedMerge Lookup(int32_t left, int32_t right) const;
  void MergeSmall(std::string_view word, std::vector<int32_t>* out) const;
  void MergeLarge(std::string_view word, Workspace* workspace, std::vector<int32_t>* out) const;

  std::vector<std::string> pieces_;
  std::array<int32_t, 256> byte_ids_;
  bool ignore_merges_;
  size_t max_piece_bytes_ = 0;
  absl::flat_hash_map<uint64_t, RankedMerge> merges_;
  // Words whose whole encoding is one token: the pieces that their own merges reach (all pieces
  // with ignore_merges). Keys point into pieces_.
  absl::flat_hash_map<std::string_view, int32_t> whole_words_;
  absl::flat_hash_map<std::string_view, int32_t> piece_ids_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_BPE_MODEL_H_
