// Reading of tests/engine/tokenizer/testdata (made by tools/tokenizer_corpus).
#ifndef HYSERVE_TESTS_ENGINE_TOKENIZER_TESTDATA_READER_H_
#define HYSERVE_TESTS_ENGINE_TOKENIZER_TESTDATA_READER_H_

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/tokenizer/tokenizer.h"

namespace hyserve::tokenizer {

inline std::string SourcePath(const std::string& relative) {
  return std::string(HYSERVE_SOURCE_DIR) + "/" + relative;
}
inline std::string DataPath(const std::string& name) {
  return SourcePath("tests/engine/tokenizer/testdata/" + name);
}

inline std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::vector<nlohmann::json> ReadRows(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(file, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

// The bytes of a corpus row: "text", or "hex" when they are not valid UTF-8.
inline std::string RowBytes(const nlohmann::json& row) {
  if (row.contains("text")) return row["text"].get<std::string>();
  const std::string hex = row["hex"];
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

inline std::unique_ptr<Tokenizer> LoadOrDie(const std::string& path) {
  auto tokenizer = Tokenizer::Load(path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline const std::vector<std::string>& StyleNames() {
  static const std::vector<std::string> kNames = {"gpt2_style", "llama3_style", "qwen2_style",
                                                  "o200k_style", "han_removed_style"};
  return kNames;
}

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_TESTS_ENGINE_TOKENIZER_TESTDATA_READER_H_
