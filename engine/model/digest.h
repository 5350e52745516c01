// The model digest: what two workers compare before they trust each other's cached state.
//
// SHA-256, the first 128 bits in hex, of the config in canonical form and of
//   a checkpoint: name, dtype and SHA-256 of the data of every tensor, in the order of names. The
//     data of a tensor is hashed in pieces of 4 MiB, and the digests of the pieces are hashed. So
//     every weight counts, and how tensors are spread over files does not;
//   random weights: seed and dtype, from which every weight follows.
// It tells apart models that differ by accident or by version. Both workers are trusted.
#ifndef HYSERVE_ENGINE_MODEL_DIGEST_H_
#define HYSERVE_ENGINE_MODEL_DIGEST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace hyserve::model {

inline constexpr size_t kDigestPieceBytes = size_t{4} << 20;

using Sha256Value = std::array<uint8_t, 32>;

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(const void* data, size_t bytes);
  // Text with its length, so that two texts in a row cannot be mistaken for another two.
  void UpdateText(std::string_view text);
  // REQUIRES: called once, last.
  Sha256Value Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The first 128 bits, 32 hex digits.
std::string DigestText(const Sha256Value& value);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_DIGEST_H_
