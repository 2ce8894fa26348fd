// Which texts may be generated, as a program over bytes: literals, runs of characters, names out of sorted lists, and walks
// over a directed multigraph whose nodes and relations have names. A state is a set of threads, since a text may be read in
// more than one way (a name that continues, or has ended); every thread can be completed, so nothing that is allowed leads
// into a dead end.
#pragma once
#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "string_index.hpp"
#include "token_trie.hpp"

namespace vglm {

enum class Op : int32_t {
  match,     // the text may end
  byte,      // a: this byte
  split,     // a, then b
  jump,      // a
  name,      // a: NameSource, b: list of a fixed source, else walk; c: Effect
  chars,     // a: class of bytes below 128, b: least, c: most characters (-1: any number), d: CharsFlag
  may_move,  // a: walk, b: 1 against the edges: go on if an edge can be taken
  may_end,   // a: walk: go on if the walk may end here
  clear,     // forget the walk and the names that were used
  push,      // a new counter, no names used
  less,      // a: go on if the counter is less (-1: always)
  at_least,  // a: go on if the counter is not less
  count,     // a: add one to the counter, up to a
  pop,       // drop the counter, no names used
  unused,    // a: list: go on if some of its names are not used
};
inline constexpr int32_t kOps = (int32_t)Op::unused + 1;

enum NameSource : int32_t { kFixed, kRelations, kTargets, kCurrent };
// What a complete name does: nothing; its items become the nodes; it is the relation; the walk takes a step; it is used up.
enum Effect : int32_t { kKeep, kSetNodes, kSetRelation, kStep, kUse };
enum CharsFlag : int32_t { kPlain = 0, kJson = 1, kAscii = 2 };  // kJson: with the escapes of a JSON string; kAscii: no others

struct Instruction {
  Op op;
  int32_t a, b, c, d;
};

// All names of an index, or those of some items (which are what such a name means).
struct NameList {
  const StringIndex* index = nullptr;
  bool all = false;
  std::vector<int32_t> groups, items;  // ascending
  uint64_t id = 0;                     // equal ids are equal lists

  int32_t size() const { return all ? index->num_groups() : (int32_t)groups.size(); }
  int32_t group(int32_t i) const { return all ? i : groups[(size_t)i]; }
  std::string_view text(int32_t i) const { return index->text(group(i)); }
  bool has_item(int32_t item) const;
  bool operator==(const NameList& other) const;
};
NameList list_of_all(const StringIndex& index);
NameList list_of_items(const StringIndex& index, std::vector<int32_t> items);  // ascending; those without a name are passed over

// Edges by (source, relation, target) and, for walks against them, their numbers by (target, relation, source).
struct Adjacency {
  std::span<const int64_t> out_start, in_start;  // [N + 1]; in_start may be empty
  std::span<const int32_t> source, target, relation, in_edge;
  int32_t num_nodes() const { return out_start.empty() ? 0 : (int32_t)out_start.size() - 1; }
};

inline constexpr int32_t kMaxHops = 30;

// One kind of walk, of min_hops to max_hops edges.
struct WalkSpec {
  const StringIndex *nodes, *relation_names;
  int32_t min_hops, max_hops;
  bool inverse;                    // whether edges may be taken against their direction
  std::vector<uint8_t> relations;  // [relations] or empty: which may be taken
  std::vector<uint32_t> reach;     // [N] or empty: bit l: a walk of l edges leads from the node to one where it may end

  bool allows(int32_t relation) const {
    return (relations.empty() || relations[(size_t)relation]) && relation_names->group_of(relation) >= 0;
  }
  // Whether a walk that has come to a node in so many hops may end, there or later; there; whether it may go on.
  bool reaches(const Adjacency& edges, int32_t node, int32_t hops) const;
  bool ends_at(int32_t node, int32_t hops) const;
  bool can_move(const Adjacency& edges, int32_t node, int32_t hops, bool against) const;
};
// What `reach` has to be for walks that may end where `ends` [N] says; empty: anywhere.
std::vector<uint32_t> walk_reach(const WalkSpec& walk, const Adjacency& edges, std::span<const uint8_t> ends);

// How a text was read: the names in it. Shared by the threads that began alike.
struct Trail {
  std::shared_ptr<const Trail> before;
  int32_t pc, group;
  int64_t end;  // bytes of the text up to the end of the name
};

// What a thread remembers besides its place. Immutable; equality leaves the trail out.
struct Context {
  std::vector<int32_t> nodes, used, counters;  // used: groups, ascending
  int32_t relation = -1, hops = 0;
  bool inverse = false;
  std::shared_ptr<const NameList> list;  // that a name is being read from, where it is not a fixed one
  std::shared_ptr<const Trail> trail;
  bool operator==(const Context& other) const;
};

struct Thread {
  int32_t pc = 0;
  int32_t lo = 0, hi = 0, depth = 0;  // of a name: the places in its list that begin with its first `depth` bytes
  int32_t count = 0, state = 0;       // of characters: how many, and where in one
  std::shared_ptr<const Context> context;
  bool operator==(const Thread& other) const;
};
using Threads = std::vector<Thread>;

// Writes a thread so that equal texts are threads with the same continuations.
void append_key(const Thread& thread, std::string& key);

// Keeps the values that were used last, up to a size in bytes. Thread-safe.
template <class T>
class LruCache {
 public:
  explicit LruCache(size_t capacity) : capacity_(capacity) {}

  std::shared_ptr<const T> find(const std::string& key) {
    std::lock_guard lock(mutex_);
    const auto found = places_.find(key);
    if (found == places_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->value;
  }
  void put(const std::string& key, std::shared_ptr<const T> value, size_t bytes) {
    bytes += 2 * key.size() + 128;
    std::lock_guard lock(mutex_);
    if (bytes > capacity_ || places_.count(key)) return;
    entries_.push_front({key, std::move(value), bytes});
    places_[key] = entries_.begin();
    bytes_ += bytes;
    while (bytes_ > capacity_) {
      bytes_ -= entries_.back().bytes;
      places_.erase(entries_.back().key);
      entries_.pop_back();
    }
  }
  size_t bytes() {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<const T> value;
    size_t bytes;
  };
  std::mutex mutex_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::string, typename std::list<Entry>::iterator> places_;
  size_t capacity_, bytes_ = 0;
};

using Mask = std::vector<uint32_t>;

class TextMachine {
 public:
  // What is pointed to must outlive the machine. Throws std::invalid_argument for a program that is none.
  TextMachine(const TokenTrie& tokens, std::vector<Instruction> program, std::vector<const NameList*> lists,
              std::vector<ByteSet> classes, Adjacency edges, std::vector<const WalkSpec*> walks);

  const TokenTrie& tokens() const { return tokens_; }
  Threads start() const;
  // The threads that a byte leads to; none if it is not allowed. `end`: bytes of the text with it.
  Threads step(const Threads& threads, uint8_t byte, int64_t end) const;
  bool may_end(const Threads& threads) const;
  // The bytes that may come next, but not more than `limit` of them.
  ByteSet next_bytes(const Threads& threads, int limit) const;
  // Sets the bits of the tokens that may come next; those that are set stay.
  void add_mask(const Threads& threads, uint32_t* mask) const;
  // Whether a token that begins with `tail` and has more bytes may come, where the threads have read the tail already.
  bool crosses(std::string_view tail, const Threads& after) const;
  // The context in which the text ends, or that of the first thread where it does not.
  std::shared_ptr<const Context> final_context(const Threads& threads, int64_t end, bool& complete) const;
  size_t cached_bytes() const { return masks_.bytes() + inside_.bytes() + lists_cache_.bytes(); }

 private:
  // Tokens that lie within a name or a run of characters, and where in the trie it may end before a token does.
  struct Inside {
    Mask mask;
    std::vector<std::pair<int32_t, int32_t>> ends;  // (node of the trie, place of the complete name in its list or -1)
    std::vector<bool> may_end;                      // [nodes], of characters
    int64_t work = 0;
  };
  friend class MaskWriter;

  const NameList& list_of(const Thread& thread) const;
  using Visited = std::vector<std::pair<int32_t, std::shared_ptr<const Context>>>;
  void close(Thread thread, Threads& out) const;
  void close(Thread thread, Threads& out, Visited& visited) const;
  void add(Thread thread, Threads& out) const;
  void enter_name(Thread thread, Threads& out) const;
  void step_name(const Thread& thread, uint8_t byte, Threads& out, int64_t end) const;
  void step_chars(const Thread& thread, uint8_t byte, Threads& out) const;
  void step_one(const Thread& thread, uint8_t byte, Threads& out, int64_t end) const;
  bool is_complete(const Thread& thread) const;
  Threads completed(const Thread& thread, int64_t end) const;
  bool passes(const Instruction& i, const Context& context) const;
  void add_next_bytes(const Thread& thread, ByteSet& bytes, int limit) const;

  // lists that depend on the walk (text_walks.cpp)
  std::shared_ptr<const NameList> relations(const WalkSpec& walk, const Context& context) const;
  std::shared_ptr<const NameList> targets(const WalkSpec& walk, const Context& context) const;
  std::shared_ptr<const NameList> dynamic_list(const Instruction& i, const Context& context) const;

  void find_first_bytes();
  ByteSet own_first_bytes(const Instruction& i) const;

  const TokenTrie& tokens_;
  std::vector<Instruction> program_;
  std::vector<const NameList*> lists_;
  std::vector<ByteSet> classes_;
  Adjacency edges_;
  std::vector<const WalkSpec*> walks_;
  std::vector<ByteSet> first_;  // [program] a superset of the bytes that may come from there on
  mutable LruCache<Mask> masks_{16 << 20};
  mutable LruCache<Inside> inside_{32 << 20};
  mutable LruCache<NameList> lists_cache_{32 << 20};
};

// The places [lo, hi) of a list whose names have this byte at `depth`, all of them having the same bytes before it.
std::pair<int32_t, int32_t> narrowed(const NameList& list, int32_t lo, int32_t hi, int32_t depth, uint8_t byte);
// Whether some of the names at [lo, hi) are not used.
bool any_unused(const NameList& list, int32_t lo, int32_t hi, const std::vector<int32_t>& used);
// Where a character's bytes go on: 0 is between characters, -1 not UTF-8 (RFC 3629) or not in the class.
int32_t next_in_char(int32_t state, uint8_t byte, const ByteSet& ascii, int32_t flag);

// A text that is being generated.
class TextMatcher {
 public:
  explicit TextMatcher(const TextMachine& machine) : machine_(machine), threads_(machine.start()) {}

  const TextMachine& machine() const { return machine_; }
  bool finished() const { return finished_; }
  void accept(int32_t token);  // throws std::invalid_argument for one that is not allowed
  std::string forced();        // the bytes that must come next
  // Takes those of the tokens over that spell the forced bytes and end before a token that is not forced may begin.
  size_t take(std::span<const int32_t> tokens);
  void fill(uint32_t* mask) const;

 private:
  size_t forced_tokens(std::span<const int32_t> tokens) const;

  const TextMachine& machine_;
  Threads threads_, after_forced_;
  std::string forced_;
  int64_t length_ = 0;
  bool finished_ = false, forced_is_all_ = false;
};

}  // namespace vglm
