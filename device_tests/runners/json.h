// Just enough JSON for a request and for host.json: objects, arrays, numbers, strings, true, false, null. No escapes beyond \" and \\.
#pragma once
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace slm {

struct Json {
  enum class Kind { Null, Boolean, Number, Text, Array, Object } kind = Kind::Null;
  bool boolean = false;
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  bool is_null() const { return kind == Kind::Null; }

  const Json& at(const std::string& key) const {
    auto found = members.find(key);
    if (found == members.end()) throw std::runtime_error("JSON: key " + key + " is missing");
    return found->second;
  }

  int64_t integer() const {
    if (kind != Kind::Number) throw std::runtime_error("JSON: a number was expected");
    return static_cast<int64_t>(number);
  }

  std::vector<int64_t> integers() const {
    std::vector<int64_t> values;
    for (const Json& item : items) values.push_back(item.integer());
    return values;
  }
};

class JsonReader {
 public:
  explicit JsonReader(std::string text) : text_(std::move(text)) {}

  Json read() {
    Json value = read_value();
    skip_space();
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  std::string text_;
  size_t at_ = 0;

  [[noreturn]] void fail() const { throw std::runtime_error("JSON: unexpected character " + std::to_string(at_)); }

  void skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) at_++;
  }

  bool take(char expected) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != expected) return false;
    at_++;
    return true;
  }

  bool take_word(const char* word) {
    const std::string expected(word);
    if (text_.compare(at_, expected.size(), expected) != 0) return false;
    at_ += expected.size();
    return true;
  }

  Json read_value() {
    Json value;
    skip_space();
    if (take('{')) {
      value.kind = Json::Kind::Object;
      while (!take('}')) {
        if (!value.members.empty() && !take(',')) fail();
        const std::string key = read_text();
        if (!take(':')) fail();
        value.members[key] = read_value();
      }
    } else if (take('[')) {
      value.kind = Json::Kind::Array;
      while (!take(']')) {
        if (!value.items.empty() && !take(',')) fail();
        value.items.push_back(read_value());
      }
    } else if (at_ < text_.size() && text_[at_] == '"') {
      value.kind = Json::Kind::Text;
      value.text = read_text();
    } else if (take_word("true")) {
      value.kind = Json::Kind::Boolean;
      value.boolean = true;
    } else if (take_word("false")) {
      value.kind = Json::Kind::Boolean;
    } else if (!take_word("null")) {
      value.kind = Json::Kind::Number;
      char* end = nullptr;
      value.number = std::strtod(text_.c_str() + at_, &end);
      if (end == text_.c_str() + at_) fail();
      at_ = static_cast<size_t>(end - text_.c_str());
    }
    return value;
  }

  std::string read_text() {
    if (!take('"')) fail();
    std::string found;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') at_++;
      found += text_[at_++];
    }
    at_++;
    return found;
  }
};

inline Json read_json(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": not readable");
  std::stringstream text;
  text << file.rdbuf();
  return JsonReader(text.str()).read();
}

}  // namespace slm
