// The merge loop: equal to the plain definition, and O(n log n) in counted queue operations.
#include "engine/tokenizer/bpe_model.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace hyserve::tokenizer {
namespace {

using Ids = std::vector<int32_t>;

// Bytes as ids 0..255 and `count` merges of random pieces that exist at that point.
BpeTables RandomTables(uint32_t seed, int count, const std::string& letters) {
  std::mt19937 random(seed);
  BpeTables tables;
  for (int byte = 0; byte < 256; ++byte) {
    tables.pieces.push_back(std::string(1, static_cast<char>(byte)));
    tables.byte_ids[byte] = byte;
  }
  Ids usable(letters.begin(), letters.end());
  std::map<std::pair<int32_t, int32_t>, bool> seen;
  while (static_cast<int>(tables.merges.size()) < count) {
    const int32_t left = usable[random() % usable.size()];
    const int32_t right = usable[random() % usable.size()];
    const std::string joined = tables.pieces[left] + tables.pieces[right];
    if (joined.size() > 12 || !seen.emplace(std::pair(left, right), true).second) continue;
    auto at = std::find(tables.pieces.begin(), tables.pieces.end(), joined);
    if (at == tables.pieces.end()) {
      tables.pieces.push_back(joined);
      at = tables.pieces.end() - 1;
      usable.push_back(static_cast<int32_t>(at - tables.pieces.begin()));
    }
    tables.merges.push_back({left, right, static_cast<int32_t>(at - tables.pieces.begin())});
  }
  return tables;
}

// The definition: while there is one, merge the leftmost pair of lowest rank.
Ids EncodeByDefinition(const BpeTables& tables, const std::string& word) {
  Ids ids;
  for (const char c : word) ids.push_back(tables.byte_ids[static_cast<uint8_t>(c)]);
  while (true) {
    size_t best_rank = tables.merges.size();
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (tables.merges[rank].left == ids[i] && tables.merges[rank].right == ids[i + 1]) {
          best_rank = rank;
          best_at = i;
        }
      }
    }
    if (best_rank == tables.merges.size()) return ids;
    ids[best_at] = tables.merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best_at) + 1);
  }
}

TEST(BpeModelTest, EqualsTheDefinitionForShortAndLongWords) {
  std::mt19937 random(3);
  for (uint32_t seed = 0; seed < 30; ++seed) {
    const BpeTables tables = RandomTables(seed, 60, "abc");
    const BpeModel model(tables);
    BpeModel::Workspace workspace;
    for (int i = 0; i < 40; ++i) {
      std::string word(1 + random() % (i % 2 == 0 ? 24 : 120), 'a');
      for (char& c : word) c = static_cast<char>('a' + random() % 3);
      Ids ids;
      model.EncodeWord(word, &workspace, &ids);
      ASSERT_EQ(ids, EncodeByDefinition(tables, word)) << "seed " << seed << ": " << word;
    }
  }
}

TEST(BpeModelTest, AWordThatIsAPieceIsOneTokenOnlyIfMergesReachItOrAreIgnored) {
  BpeTables tables = RandomTables(1, 0, "a");
  tables.pieces.push_back("xyz");
  for (const bool ignore : {false, true}) {
    tables.ignore_merges = ignore;
    const BpeModel model(tables);
    BpeModel::Workspace workspace;
    Ids ids;
    model.EncodeWord("xyz", &workspace, &ids);
    EXPECT_EQ(ids, ignore ? Ids{256} : (Ids{'x', 'y', 'z'}));
    EXPECT_EQ(model.Find("xyz"), 256);
    EXPECT_EQ(model.Find("xy"), -1);
  }
}

TEST(BpeModelTest, QueueWorkIsLinearInTheWord) {
  std::mt19937 random(9);
  for (uint32_t seed = 0; seed < 4; ++seed) {
    const BpeModel model(RandomTables(seed, 80, "ab"));
    for (const size_t bytes : {1000u, 10'000u, 100'000u, 1'000'000u}) {
      for (const int kind : {0, 1, 2}) {
        std::string word(bytes, 'a');
        for (size_t i = 0; i < bytes; ++i) {
          if (kind == 1) word[i] = static_cast<char>('a' + i % 2);
          if (kind == 2) word[i] = static_cast<char>('a' + random() % 2);
        }
        BpeModel::Workspace workspace;
        Ids ids;
        model.EncodeWord(word, &workspace, &ids);
        EXPECT_LE(workspace.stats.queue_pushes, 3 * bytes);
        EXPECT_EQ(workspace.stats.queue_pops, workspace.stats.queue_pushes);
        EXPECT_LT(ids.size(), bytes + 1);
      }
    }
  }
}

}  // namespace
}  // namespace hyserve::tokenizer
