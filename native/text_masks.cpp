// Which tokens may come next: the vocabulary's trie and the program are walked together, along what both allow.
//
// Threads do not depend on each other, so a mask is the union of theirs. The tokens that lie within a name, or within a run
// of characters, depend on little (a range of a list, a class of characters) and are kept; tokens that go on beyond it are
// found from the places where it may end.
#include <algorithm>
#include <stdexcept>

#include "text_machine.hpp"

namespace vglm {
namespace {

constexpr int32_t kWide = 64;      // names: ranges of more are worth keeping
constexpr int64_t kWork = 256;     // nodes of the trie that were visited: masks that took more are worth keeping
constexpr int kFewBytes = 16;
constexpr size_t kMaxForced = 1 << 16;  // bytes in one go

}  // namespace

class MaskWriter {
 public:
  MaskWriter(const TextMachine& machine, uint32_t* mask) : machine_(machine), trie_(machine.tokens_), mask_(mask) {}

  void add(const Thread& thread) {
    const Op op = machine_.program_[(size_t)thread.pc].op;
    if (op == Op::byte) descend(TokenTrie::kRoot, {thread});
    if (op == Op::name) add_name(thread);
    if (op == Op::chars) add_chars(thread);
  }
  int64_t work() const { return work_; }

  // Whether some token below a node is allowed.
  bool any(int32_t node, const Threads& threads) {
    return visit(node, threads, [&](int32_t child, const Threads& next) { return !trie_.tokens(child).empty() || any(child, next); });
  }

 private:
  using Inside = TextMachine::Inside;

  void allow(int32_t node, uint32_t* mask) const {
    for (int32_t token : trie_.tokens(node)) mask[token / 32] |= 1u << (token % 32);
  }
  void forbid(int32_t node, uint32_t* mask) const {
    for (int32_t token : trie_.tokens(node)) mask[token / 32] &= ~(1u << (token % 32));
  }

  // Calls back for every child that the threads lead to, with the threads there, until one says true.
  template <class Found>
  bool visit(int32_t node, const Threads& threads, Found found) {
    const auto child_found = [&](int32_t child) {
      work_++;
      const Threads next = machine_.step(threads, trie_.byte(child), 0);
      return !next.empty() && found(child, next);
    };
    const int32_t begin = trie_.first_child(node), end = trie_.end_child(node);
    if (end - begin > kFewBytes) {
      const ByteSet bytes = machine_.next_bytes(threads, kFewBytes);
      if (bytes.count() < kFewBytes) {
        for (size_t byte = bytes._Find_first(); byte < 256; byte = bytes._Find_next(byte)) {
          const int32_t child = trie_.child(node, (uint8_t)byte);
          if (child >= 0 && child_found(child)) return true;
        }
        return false;
      }
    }
    for (int32_t child = begin; child < end; child++)
      if (child_found(child)) return true;
    return false;
  }

  void descend(int32_t node, const Threads& threads) {
    visit(node, threads, [&](int32_t child, const Threads& next) {
      allow(child, mask_);
      descend(child, next);
      return false;
    });
  }

  // ---- names

  void add_name(const Thread& thread) {
    const NameList& list = machine_.list_of(thread);
    const bool wide = thread.hi - thread.lo > kWide;
    std::shared_ptr<const Inside> kept;
    std::vector<std::pair<int32_t, int32_t>> own_ends;
    if (wide) {
      kept = wide_name(list, thread);
      Mask mask = kept->mask;
      for (int32_t group : thread.context->used) forbid_used(list, thread, group, mask.data());
      for (size_t word = 0; word < mask.size(); word++) mask_[word] |= mask[word];
    } else {
      within_name(list, TokenTrie::kRoot, thread.lo, thread.hi, thread.depth, thread.context->used, mask_, own_ends);
    }
    const ByteSet& first = machine_.first_[(size_t)thread.pc + 1];
    for (const auto& [node, place] : wide ? kept->ends : own_ends) {
      if (!goes_on(node, first) || !any_unused(list, place, place + 1, thread.context->used)) continue;
      Thread complete = thread;
      complete.lo = place;
      descend(node, machine_.completed(complete, 0));
    }
  }

  bool goes_on(int32_t node, const ByteSet& bytes) const {
    for (int32_t child = trie_.first_child(node); child < trie_.end_child(node); child++)
      if (bytes[trie_.byte(child)]) return true;
    return false;
  }

  std::shared_ptr<const Inside> wide_name(const NameList& list, const Thread& thread) {
    std::string key = "n";
    for (uint64_t value : {list.id, (uint64_t)thread.lo, (uint64_t)thread.hi, (uint64_t)thread.depth})
      key.append((const char*)&value, sizeof value);
    if (auto kept = machine_.inside_.find(key)) return kept;
    auto inside = std::make_shared<Inside>();
    inside->mask.resize(trie_.words());
    within_name(list, TokenTrie::kRoot, thread.lo, thread.hi, thread.depth, {}, inside->mask.data(), inside->ends);
    machine_.inside_.put(key, inside, 4 * inside->mask.size() + 8 * inside->ends.size());
    return inside;
  }

  // Both sides are sorted: what one of them lacks is skipped in the other.
  void within_name(const NameList& list, int32_t node, int32_t place, int32_t hi, int32_t depth, const std::vector<int32_t>& used,
                   uint32_t* mask, std::vector<std::pair<int32_t, int32_t>>& ends) {
    work_++;
    int32_t child = trie_.first_child(node);
    const int32_t end = trie_.end_child(node);
    if (place < hi && list.text(place).size() == (size_t)depth) {
      if (depth > 0 && child < end) ends.emplace_back(node, place);
      place++;
    }
    while (place < hi && child < end) {
      const uint8_t byte = (uint8_t)list.text(place)[(size_t)depth];
      child = trie_.child_from(child, end, byte);
      if (child == end) return;
      if (trie_.byte(child) != byte) {
        place = place_of(list, place, hi, depth, trie_.byte(child));
        continue;
      }
      const int32_t stop = narrowed(list, place, hi, depth, byte).second;
      if (any_unused(list, place, stop, used)) {
        allow(child, mask);
        within_name(list, child, place, stop, depth + 1, used, mask, ends);
      }
      place = stop;
      child++;
    }
  }

  // The first place whose byte at `depth` is not less.
  static int32_t place_of(const NameList& list, int32_t lo, int32_t hi, int32_t depth, uint8_t byte) {
    while (lo < hi) {
      const int32_t middle = lo + (hi - lo) / 2;
      if ((uint8_t)list.text(middle)[(size_t)depth] < byte) lo = middle + 1;
      else hi = middle;
    }
    return lo;
  }

  // Takes tokens back that only names lead to which are used.
  void forbid_used(const NameList& list, const Thread& thread, int32_t group, uint32_t* mask) {
    const std::string_view text = list.index->text(group);
    if (group < list.group(thread.lo) || group > list.group(thread.hi - 1)) return;
    int32_t node = TokenTrie::kRoot, lo = thread.lo, hi = thread.hi;
    for (size_t depth = (size_t)thread.depth; depth < text.size(); depth++) {
      node = trie_.child(node, (uint8_t)text[depth]);
      if (node < 0) return;
      std::tie(lo, hi) = narrowed(list, lo, hi, (int32_t)depth, (uint8_t)text[depth]);
      if (!any_unused(list, lo, hi, thread.context->used)) forbid(node, mask);
    }
  }

  // ---- characters

  void add_chars(const Thread& thread) {
    const Instruction& i = machine_.program_[(size_t)thread.pc];
    const std::shared_ptr<const Inside> inside = run_of_chars(i, thread);
    for (size_t word = 0; word < inside->mask.size(); word++) mask_[word] |= inside->mask[word];
    Threads after;
    machine_.close({.pc = thread.pc + 1, .context = thread.context}, after);
    const ByteSet& first = machine_.first_[(size_t)thread.pc + 1];
    for (size_t byte = first._Find_first(); byte < 256; byte = first._Find_next(byte)) {
      const Threads next = machine_.step(after, (uint8_t)byte, 0);
      if (next.empty()) continue;
      for (int32_t node : trie_.reached_by((uint8_t)byte)) {
        if (!inside->may_end[(size_t)trie_.parent(node)]) continue;
        work_++;
        allow(node, mask_);
        descend(node, next);
      }
    }
  }

  std::shared_ptr<const Inside> run_of_chars(const Instruction& i, const Thread& thread) {
    // Beyond the length of a token it does not matter how many characters are missing, or may still come.
    const int32_t longest = (int32_t)trie_.longest() + 1;
    const int32_t least = std::min(longest, std::max(0, i.b - thread.count));
    const int32_t most = i.c < 0 ? longest : std::min(longest, i.c - thread.count);
    std::string key = "c";
    for (int32_t value : {i.a, i.d, thread.state, least, most}) key.append((const char*)&value, sizeof value);
    if (auto kept = machine_.inside_.find(key)) return kept;
    auto inside = std::make_shared<Inside>();
    inside->mask.resize(trie_.words());
    inside->may_end.resize((size_t)trie_.num_nodes());
    within_chars(i, TokenTrie::kRoot, thread.state, least, most, *inside);
    machine_.inside_.put(key, inside, 4 * inside->mask.size() + inside->may_end.size() / 8);
    return inside;
  }

  void within_chars(const Instruction& i, int32_t node, int32_t state, int32_t least, int32_t most, Inside& inside) {
    if (state == 0 && most <= 0) return;
    for (int32_t child = trie_.first_child(node); child < trie_.end_child(node); child++) {
      work_++;
      const int32_t next = next_in_char(state, trie_.byte(child), machine_.classes_[(size_t)i.a], i.d);
      if (next < 0) continue;
      const bool whole = next == 0;
      allow(child, inside.mask.data());
      inside.may_end[(size_t)child] = whole && least <= 1;
      within_chars(i, child, next, whole ? std::max(0, least - 1) : least, whole ? most - 1 : most, inside);
    }
  }

  const TextMachine& machine_;
  const TokenTrie& trie_;
  uint32_t* mask_;
  int64_t work_ = 0;
};

void TextMachine::add_mask(const Threads& threads, uint32_t* mask) const {
  std::string key;
  for (const Thread& thread : threads) {
    const Op op = program_[(size_t)thread.pc].op;
    if (op == Op::chars || (op == Op::name && thread.hi - thread.lo > kWide)) {
      for (const Thread& each : threads) append_key(each, key);
      break;
    }
  }
  if (!key.empty())
    if (const auto kept = masks_.find(key)) {
      for (size_t word = 0; word < kept->size(); word++) mask[word] |= (*kept)[word];
      return;
    }
  Mask own(tokens_.words());
  MaskWriter writer(*this, own.data());
  for (const Thread& thread : threads) writer.add(thread);
  for (size_t word = 0; word < own.size(); word++) mask[word] |= own[word];
  if (!key.empty() && writer.work() > kWork) {
    const size_t bytes = 4 * own.size();
    masks_.put(key, std::make_shared<const Mask>(std::move(own)), bytes);
  }
}

bool TextMachine::crosses(std::string_view tail, const Threads& after) const {
  int32_t node = TokenTrie::kRoot;
  for (size_t i = 0; i < tail.size() && node >= 0; i++) node = tokens_.child(node, (uint8_t)tail[i]);
  return node >= 0 && MaskWriter(*this, nullptr).any(node, after);
}

// ---- a text that is being generated --------------------------------------------------------------------------------------

void TextMatcher::accept(int32_t token) {
  if (machine_.tokens().is_end(token) && machine_.may_end(threads_)) {
    finished_ = true;
    return;
  }
  const std::string_view bytes = machine_.tokens().bytes_of(token);
  Threads threads = threads_;
  int64_t length = length_;
  for (char byte : bytes) threads = machine_.step(threads, (uint8_t)byte, ++length);
  if (bytes.empty() || threads.empty() || finished_) throw std::invalid_argument("token " + std::to_string(token) + " is not allowed here");
  threads_ = std::move(threads);
  length_ = length;
}

std::string TextMatcher::forced() {
  forced_.clear();
  after_forced_ = threads_;
  forced_is_all_ = false;
  while (forced_.size() < kMaxForced) {
    const ByteSet next = machine_.next_bytes(after_forced_, 2);
    if (machine_.may_end(after_forced_)) {
      forced_is_all_ = next.none();
      break;
    }
    if (next.count() != 1) break;
    const uint8_t byte = (uint8_t)next._Find_first();
    Threads after = machine_.step(after_forced_, byte, length_ + (int64_t)forced_.size() + 1);
    if (after.empty()) break;  // a program with a dead end
    forced_.push_back((char)byte);
    after_forced_ = std::move(after);
  }
  finished_ |= forced_is_all_ && forced_.empty();
  return forced_;
}

// How many of the tokens spell the forced bytes and begin where no token may begin that goes on beyond them.
size_t TextMatcher::forced_tokens(std::span<const int32_t> tokens) const {
  const std::string_view forced = forced_;
  size_t count = 0, place = 0;
  for (int32_t token : tokens) {
    const std::string_view bytes = machine_.tokens().bytes_of(token);
    if (bytes.empty() || forced.substr(place, bytes.size()) != bytes) break;
    const bool near_end = forced.size() - place < machine_.tokens().longest();
    if (near_end && !forced_is_all_ && machine_.crosses(forced.substr(place), after_forced_)) break;
    place += bytes.size();
    count++;
  }
  return count;
}

size_t TextMatcher::take(std::span<const int32_t> tokens) {
  const size_t count = forced_tokens(tokens);
  for (int32_t token : tokens.first(count)) accept(token);
  std::string rest;
  for (int32_t token : tokens.first(count)) rest.append(machine_.tokens().bytes_of(token));
  if (forced_is_all_ && rest.size() == forced_.size()) finished_ = true;
  forced_.clear();
  return count;
}

void TextMatcher::fill(uint32_t* mask) const {
  std::fill(mask, mask + machine_.tokens().words(), 0u);
  if (!finished_) machine_.add_mask(threads_, mask);
  if (finished_ || machine_.may_end(threads_))
    for (int32_t token : machine_.tokens().ends()) mask[token / 32] |= 1u << (token % 32);
}

}  // namespace vglm
