#include "services/common/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <sstream>

#include "absl/container/flat_hash_set.h"
#include "base/strings.h"
#include "services/common/config_reader.h"

namespace hyserve::common::internal {
namespace {

YamlPosition PositionOf(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

// A comment behind the text. yaml-cpp closes an open quote at the end of the input without a word;
// then this is part of the value.
constexpr char kEndOfText[] = "# end of the configuration text";

// Thrown to leave yaml-cpp's parser early.
struct TooDeep {
  YamlPosition position;
};

// Builds the tree from the parser's events. Every container is a frame on the stack; a mapping's
// scalars are alternately keys and values.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(ConfigProblems* problems) : problems_(problems) {}

  std::unique_ptr<YamlNode> TakeRoot() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    CheckDecoration(mark, "", anchor);
    Add(NewNode(YamlNode::Kind::kNull, mark));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    problems_->Add(PositionOf(mark), Path(), "aliases are not allowed");
    Add(NewNode(YamlNode::Kind::kNull, mark));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    CheckDecoration(mark, tag, anchor);
    if (ToAbsl(value).find(kEndOfText) != absl::string_view::npos) {
      problems_->Add(PositionOf(mark), Path(), "the closing quote is missing");
    }
    auto node = NewNode(YamlNode::Kind::kScalar, mark);
    node->scalar = value;
    node->quoted = tag == "!";
    Add(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value style) override {
    CheckDecoration(mark, tag, anchor);
    Push(NewNode(YamlNode::Kind::kSequence, mark));
  }
  void OnSequenceEnd() override { stack_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value style) override {
    CheckDecoration(mark, tag, anchor);
    Push(NewNode(YamlNode::Kind::kMapping, mark));
  }
  void OnMapEnd() override { stack_.pop_back(); }
  void OnAnchor(const YAML::Mark& mark, const std::string& name) override {
    problems_->Add(PositionOf(mark), Path(), "anchors are not allowed");
  }

 private:
  struct Frame {
    YamlNode* node;
    bool has_key = false;
    bool duplicate = false;
    std::string key;
    YamlPosition key_position;
    absl::flat_hash_set<std::string> keys;
  };

  static std::unique_ptr<YamlNode> NewNode(YamlNode::Kind kind, const YAML::Mark& mark) {
    auto node = std::make_unique<YamlNode>();
    node->kind = kind;
    node->position = PositionOf(mark);
    return node;
  }

  void CheckDecoration(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    // "?" and "" are no tag; "!" marks a quoted scalar.
    if (!tag.empty() && tag != "?" && tag != "!") {
      problems_->Add(PositionOf(mark), Path(), "tags are not allowed");
    }
  }

  // Where the parser is: keys and indices of the open containers.
  std::string Path() const {
    std::string path;
    for (const Frame& frame : stack_) {
      const bool innermost = &frame == &stack_.back();
      if (frame.node->kind == YamlNode::Kind::kSequence) {
        StrAppend(&path, "[", frame.node->items.size() - (innermost ? 0 : 1), "]");
      } else if (!innermost || frame.has_key) {
        StrAppend(&path, path.empty() ? "" : ".", frame.key);
      }
    }
    return path;
  }

  // Attaches a node to the innermost container and returns where it lives.
  YamlNode* Add(std::unique_ptr<YamlNode> node) {
    YamlNode* const raw = node.get();
    if (stack_.empty()) {
      root_ = std::move(node);
      return raw;
    }
    Frame& frame = stack_.back();
    if (frame.node->kind == YamlNode::Kind::kSequence) {
      frame.node->items.push_back(std::move(node));
      return raw;
    }
    if (!frame.has_key) {
      frame.has_key = true;
      frame.key_position = node->position;
      frame.key = node->scalar;
      if (node->kind != YamlNode::Kind::kScalar) {
        problems_->Add(node->position, Path(), "keys must be plain words");
        garbage_.push_back(std::move(node));
        return raw;
      }
      frame.duplicate = !frame.keys.insert(frame.key).second;
      if (frame.duplicate) problems_->Add(frame.key_position, Path(), "duplicate key");
      return nullptr;
    }
    frame.has_key = false;
    if (frame.duplicate) {
      garbage_.push_back(std::move(node));  // alive while its own frames are open
      return raw;
    }
    frame.node->entries.push_back({frame.key, frame.key_position, std::move(node)});
    return raw;
  }

  void Push(std::unique_ptr<YamlNode> node) {
    if (stack_.size() >= kMaxConfigDepth) throw TooDeep{node->position};
    YamlNode* const raw = Add(std::move(node));
    Frame frame;
    frame.node = raw;
    stack_.push_back(std::move(frame));
  }

  ConfigProblems* problems_;
  std::unique_ptr<YamlNode> root_;
  std::vector<Frame> stack_;
  std::vector<std::unique_ptr<YamlNode>> garbage_;
};

// Length of the valid UTF-8 sequence at `text[i]`, or 0 (RFC 3629, section 4).
size_t Utf8Length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) -> uint8_t {
    return i + k < text.size() ? static_cast<uint8_t>(text[i + k]) : 0;
  };
  const auto tail = [&](size_t k) { return (byte(k) & 0xC0) == 0x80; };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return tail(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    if (!tail(1) || !tail(2)) return 0;
    if (lead == 0xE0 && byte(1) < 0xA0) return 0;
    if (lead == 0xED && byte(1) > 0x9F) return 0;
    return 3;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3)) return 0;
    if (lead == 0xF0 && byte(1) < 0x90) return 0;
    if (lead == 0xF4 && byte(1) > 0x8F) return 0;
    return 4;
  }
  return 0;
}

// Characters that no configuration needs and that hide what is read.
bool CheckCharacters(std::string_view text, ConfigProblems* problems) {
  if (text.substr(0, 3) == "\xEF\xBB\xBF") {
    problems->Add({1, 1}, "", "starts with a byte order mark");
    return false;
  }
  const size_t before = problems->problems.size();
  YamlPosition position;
  bool indenting = true;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    const size_t length = Utf8Length(text, i);
    if (length == 0) {
      problems->Add(position, "", "is not valid UTF-8");
      return false;
    }
    if (c == '\n') {
      ++position.line;
      position.column = 1;
      indenting = true;
    } else {
      if (c == '\t' && indenting) problems->Add(position, "", "tab in the indentation; use spaces");
      if (static_cast<uint8_t>(c) < 0x20 && c != '\t' && c != '\r') {
        problems->Add(position, "", "control character");
      }
      if (c != ' ') indenting = false;
      ++position.column;
    }
    i += length;
  }
  return problems->problems.size() == before;
}

}  // namespace

std::unique_ptr<YamlNode> ParseYaml(std::string_view text, ConfigProblems* problems) {
  if (!CheckCharacters(text, problems)) return nullptr;
  std::istringstream stream{StrCat(text, "\n", kEndOfText, "\n")};
  TreeBuilder builder(problems);
  try {
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) {
      problems->Add({1, 1}, "", "is empty");
      return nullptr;
    }
    std::unique_ptr<YamlNode> root = builder.TakeRoot();
    TreeBuilder second(problems);
    if (parser.HandleNextDocument(second)) {
      const std::unique_ptr<YamlNode> extra = second.TakeRoot();
      problems->Add(extra == nullptr ? YamlPosition{} : extra->position, "",
                    "a second document is not allowed");
    }
    return root;
  } catch (const TooDeep& deep) {
    problems->Add(deep.position, "", StrCat("nested deeper than ", kMaxConfigDepth));
  } catch (const YAML::Exception& error) {
    problems->Add(PositionOf(error.mark), "", error.msg);
  }
  return nullptr;
}

}  // namespace hyserve::common::internal
