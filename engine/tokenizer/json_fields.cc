#include "engine/tokenizer/json_fields.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "engine/tokenizer/strict_json.h"

namespace hyserve::tokenizer {

using Json = nlohmann::json;

JsonFields::JsonFields(const Json& object, std::string path) : path_(std::move(path)) {
  if (object.is_object()) {
    object_ = &object;
  } else {
    status_ = JsonError(path_.empty() ? "the document" : path_, "must be an object");
  }
}

std::string JsonFields::PathOf(std::string_view key) const {
  return path_.empty() ? std::string(key) : StrCat(path_, ".", key);
}

void JsonFields::Fail(std::string_view key, std::string_view reason) {
  if (status_.ok()) status_ = JsonError(PathOf(key), reason);
}

const Json* JsonFields::Find(std::string_view key) const {
  if (object_ == nullptr) return nullptr;
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

std::string JsonFields::RequiredString(std::string_view key) {
  const Json* value = Find(key);
  if (value != nullptr && value->is_string()) return value->get<std::string>();
  Fail(key, value == nullptr ? "is missing" : "must be a string");
  return "";
}

bool JsonFields::RequiredBool(std::string_view key) {
  const Json* value = Find(key);
  if (value != nullptr && value->is_boolean()) return value->get<bool>();
  Fail(key, value == nullptr ? "is missing" : "must be true or false");
  return false;
}

bool JsonFields::BoolOr(std::string_view key, bool fallback) {
  return Find(key) == nullptr ? fallback : RequiredBool(key);
}

int64_t JsonFields::RequiredInt(std::string_view key, int64_t low, int64_t high) {
  const Json* value = Find(key);
  if (value == nullptr) {
    Fail(key, "is missing");
  } else if (!value->is_number_integer()) {
    Fail(key, "must be an integer");
  } else if ((value->is_number_unsigned() &&
              value->get<uint64_t>() > static_cast<uint64_t>(high)) ||
             value->get<int64_t>() < low || value->get<int64_t>() > high) {
    Fail(key, StrCat("must be in [", low, ", ", high, "]; got ", value->dump()));
  } else {
    return value->get<int64_t>();
  }
  return low;
}

const Json* JsonFields::RequiredArray(std::string_view key) {
  const Json* value = Find(key);
  if (value != nullptr && value->is_array()) return value;
  Fail(key, value == nullptr ? "is missing" : "must be an array");
  return nullptr;
}

const Json* JsonFields::RequiredObject(std::string_view key) {
  const Json* value = Find(key);
  if (value != nullptr && value->is_object()) return value;
  Fail(key, value == nullptr ? "is missing" : "must be an object");
  return nullptr;
}

void JsonFields::AllowOnly(std::initializer_list<std::string_view> keys) {
  if (object_ == nullptr) return;
  for (const auto& [key, value] : object_->items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      if (status_.ok()) {
        status_ = JsonError(path_.empty() ? "the document" : path_,
                            StrCat("unknown member ", QuoteForMessage(key)));
      }
      return;
    }
  }
}

void JsonFields::RequireTrivial(std::string_view key) {
  const Json* value = Find(key);
  if (value == nullptr || *value == false || *value == "" || *value == 0) return;
  Fail(key, StrCat("is not supported; got ", QuoteForMessage(value->dump())));
}

}  // namespace hyserve::tokenizer
