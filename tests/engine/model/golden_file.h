// Reads the golden files of tests/golden (its README says what they hold).
#ifndef HYSERVE_TESTS_ENGINE_MODEL_GOLDEN_FILE_H_
#define HYSERVE_TESTS_ENGINE_MODEL_GOLDEN_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/safetensors.h"
#include "gtest/gtest.h"

namespace hyserve::model {

inline const std::string kGoldenDirectory = HYSERVE_SOURCE_DIR "/tests/golden";

class GoldenFile {
 public:
  // Fails the test when the file is not in the tree.
  explicit GoldenFile(const std::string& path) {
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path, path);
    if (!file.ok()) {
      ADD_FAILURE() << file.status();
      return;
    }
    file_ = *std::move(file);
  }

  bool Has(const std::string& name) const { return file_.Find(name) != nullptr; }
  std::vector<float> Floats(const std::string& name) const { return Read<float>(name, "F32"); }
  std::vector<int32_t> Ints(const std::string& name) const { return Read<int32_t>(name, "I32"); }

  // `prefix`selection.<layer> of the layers given, as one row in the order of StepOutput.
  std::vector<int32_t> SelectionRow(const std::string& prefix, const std::vector<int>& layers,
                                    int64_t row, int64_t num_rows) const {
    std::vector<int32_t> all;
    for (const int layer : layers) {
      const std::vector<int32_t> table = Ints(absl::StrCat(prefix, "selection.", layer));
      const int64_t width = static_cast<int64_t>(table.size()) / num_rows;
      all.insert(all.end(), table.begin() + row * width, table.begin() + (row + 1) * width);
    }
    return all;
  }

 private:
  template <typename T>
  std::vector<T> Read(const std::string& name, const char* dtype) const {
    const TensorEntry* entry = file_.Find(name);
    if (entry == nullptr || entry->dtype != dtype) {
      ADD_FAILURE() << "no " << dtype << " tensor " << name;
      return {};
    }
    std::vector<T> values((entry->end - entry->begin) / sizeof(T));
    EXPECT_TRUE(file_.Read(*entry, values.data()).ok());
    return values;
  }

  SafetensorsFile file_;
};

}  // namespace hyserve::model

#endif  // HYSERVE_TESTS_ENGINE_MODEL_GOLDEN_FILE_H_
