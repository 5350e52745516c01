#include "engine/model/digest.h"

#include <openssl/evp.h>

#include <cstdlib>

#include "absl/strings/escaping.h"

namespace hyserve::model {
namespace {

// SHA-256 needs no resources but memory, so a failure leaves nothing to go on with.
void Require(bool succeeded) {
  if (!succeeded) std::abort();
}

}  // namespace

struct Sha256::State {
  State() : context(EVP_MD_CTX_new()) {}
  ~State() { EVP_MD_CTX_free(context); }
  EVP_MD_CTX* context;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  Require(state_->context != nullptr);
  Require(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() = default;

void Sha256::Update(const void* data, size_t bytes) {
  Require(EVP_DigestUpdate(state_->context, data, bytes) == 1);
}

void Sha256::UpdateText(std::string_view text) {
  const uint64_t length = text.size();
  uint8_t little_endian[8];
  for (int i = 0; i < 8; ++i) little_endian[i] = static_cast<uint8_t>(length >> (8 * i));
  Update(little_endian, sizeof(little_endian));
  Update(text.data(), text.size());
}

Sha256Value Sha256::Finish() {
  Sha256Value value;
  unsigned int length = 0;
  Require(EVP_DigestFinal_ex(state_->context, value.data(), &length) == 1);
  Require(length == value.size());
  return value;
}

std::string DigestText(const Sha256Value& value) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(value.data()), 16));
}

}  // namespace hyserve::model
