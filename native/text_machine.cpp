#include "text_machine.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>

namespace vglm {
namespace {

constexpr size_t kMaxThreads = 256;  // readings of a text that are followed; the preferred ones
constexpr int kMaxEmptySteps = 2000; // instructions in a row that read nothing

// Where a program goes on from an instruction without reading a byte.
std::vector<int32_t> empty_steps(const Instruction& i, int32_t pc) {
  switch (i.op) {
    case Op::match: case Op::byte: case Op::name: return {};
    case Op::split: return {i.a, i.b};
    case Op::jump: return {i.a};
    case Op::chars: return i.b > 0 ? std::vector<int32_t>{} : std::vector<int32_t>{pc + 1};
    default: return {pc + 1};
  }
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("TextMachine: ") + what);
}

// What the operands of an instruction may refer to.
struct Parts {
  size_t program, classes;
  const std::vector<const NameList*>& lists;
  const std::vector<const WalkSpec*>& walks;
  int32_t nodes;
};

bool below(int32_t value, size_t end) { return value >= 0 && (size_t)value < end; }

void check_name(const Instruction& i, const Parts& parts) {
  require(i.a >= kFixed && i.a <= kCurrent && i.c >= kKeep && i.c <= kUse, "a name is out of range");
  if (i.a != kFixed) {
    require(below(i.b, parts.walks.size()) && i.c != kUse, "no such walk, or its names are to be used up");
    require(i.c != kStep || i.a == kTargets, "a step leads elsewhere than to a target");
    require(i.c != kSetNodes || i.a != kRelations, "a relation is no node");
  } else {
    require(below(i.b, parts.lists.size()) && i.c != kStep, "no such list, or a step without a walk");
    require(i.c != kSetNodes || parts.lists[(size_t)i.b]->index->num_items() <= parts.nodes, "a list of nodes that there are not");
  }
}

void check(const Instruction& i, size_t pc, const Parts& parts) {
  require((int32_t)i.op >= 0 && (int32_t)i.op < kOps, "an unknown instruction");
  require(i.op == Op::match || i.op == Op::jump || i.op == Op::split || pc + 1 < parts.program, "the program does not end");
  if (i.op == Op::byte) require(below(i.a, 256), "a byte is out of range");
  if (i.op == Op::split) require(below(i.a, parts.program) && below(i.b, parts.program), "a split leads out of the program");
  if (i.op == Op::jump) require(below(i.a, parts.program), "a jump leads out of the program");
  if (i.op == Op::chars)
    require(below(i.a, parts.classes) && i.b >= 0 && (i.c == -1 || (i.c > 0 && i.c >= i.b)), "characters out of range");
  if (i.op == Op::unused) require(below(i.a, parts.lists.size()), "no such list");
  if (i.op == Op::name) check_name(i, parts);
  if (i.op == Op::may_move || i.op == Op::may_end) require(below(i.a, parts.walks.size()), "no such walk");
  if (i.op == Op::may_move) require(!i.b || parts.walks[(size_t)i.a]->inverse, "a walk against edges that may not be taken so");
}

void check_empty_steps(const std::vector<Instruction>& program) {
  std::vector<int> length(program.size(), -1);  // of the longest chain from here; -2: being measured
  std::function<int(int32_t, int)> measure = [&](int32_t pc, int depth) -> int {
    int& known = length[(size_t)pc];
    require(known != -2, "instructions that read nothing form a cycle");
    require(depth < kMaxEmptySteps, "too many instructions in a row read nothing");
    if (known >= 0) return known;
    known = -2;
    int longest = 0;
    for (int32_t next : empty_steps(program[(size_t)pc], pc)) longest = std::max(longest, 1 + measure(next, depth + 1));
    require(longest < kMaxEmptySteps, "too many instructions in a row read nothing");
    return known = longest;
  };
  for (size_t pc = 0; pc < program.size(); pc++) measure((int32_t)pc, 0);
}

}  // namespace

TextMachine::TextMachine(const TokenTrie& tokens, std::vector<Instruction> program, std::vector<const NameList*> lists,
                         std::vector<ByteSet> classes, Adjacency edges, std::vector<const WalkSpec*> walks)
    : tokens_(tokens), program_(std::move(program)), lists_(std::move(lists)), classes_(std::move(classes)), edges_(edges),
      walks_(std::move(walks)) {
  require(!program_.empty(), "the program is empty");
  for (size_t pc = 0; pc < program_.size(); pc++)
    check(program_[pc], pc, {program_.size(), classes_.size(), lists_, walks_, edges_.num_nodes()});
  check_empty_steps(program_);
  find_first_bytes();
}

void TextMachine::find_first_bytes() {
  first_.resize(program_.size());
  std::vector<bool> known(program_.size());
  std::function<const ByteSet&(int32_t)> find = [&](int32_t pc) -> const ByteSet& {
    ByteSet& found = first_[(size_t)pc];
    if (known[(size_t)pc]) return found;
    found = own_first_bytes(program_[(size_t)pc]);
    for (int32_t next : empty_steps(program_[(size_t)pc], pc)) found |= find(next);
    known[(size_t)pc] = true;
    return found;
  };
  for (size_t pc = 0; pc < program_.size(); pc++) find((int32_t)pc);
}

ByteSet TextMachine::own_first_bytes(const Instruction& i) const {
  ByteSet found;
  if (i.op == Op::byte) found.set((size_t)i.a);
  if (i.op == Op::name) found.set();
  if (i.op == Op::chars) {
    found = classes_[(size_t)i.a];
    for (size_t byte = 0x80; byte < 256 && i.d != kAscii; byte++) found.set(byte);
    if (i.d == kJson) found.set('\\');
  }
  return found;
}

// ---- states --------------------------------------------------------------------------------------------------------------

bool Context::operator==(const Context& other) const {
  const bool same_list = list == other.list || (list && other.list && *list == *other.list);
  return same_list && relation == other.relation && hops == other.hops && inverse == other.inverse && nodes == other.nodes &&
         used == other.used && counters == other.counters;
}

bool Thread::operator==(const Thread& other) const {
  return pc == other.pc && lo == other.lo && hi == other.hi && depth == other.depth && count == other.count &&
         state == other.state && (context == other.context || *context == *other.context);
}

Threads TextMachine::start() const {
  Threads threads;
  close({.context = std::make_shared<Context>()}, threads);
  return threads;
}

void TextMachine::add(Thread thread, Threads& out) const {
  if (out.size() < kMaxThreads && std::find(out.begin(), out.end(), thread) == out.end()) out.push_back(std::move(thread));
}

// Adds the threads that a thread stands for once everything that reads nothing is done, the preferred ones first.
void TextMachine::close(Thread thread, Threads& out) const {
  Visited visited;
  close(std::move(thread), out, visited);
}

// `visited`: where this has been, since many ways may lead to one place.
void TextMachine::close(Thread thread, Threads& out, Visited& visited) const {
  for (const auto& [pc, context] : visited)
    if (pc == thread.pc && (context == thread.context || *context == *thread.context)) return;
  visited.emplace_back(thread.pc, thread.context);
  const Instruction& i = program_[(size_t)thread.pc];
  const auto go_on = [&](int32_t pc, std::shared_ptr<const Context> context) {
    close({.pc = pc, .context = std::move(context)}, out, visited);
  };
  const auto changed = [&](auto change) {
    auto context = std::make_shared<Context>(*thread.context);
    change(*context);
    go_on(thread.pc + 1, std::move(context));
  };
  switch (i.op) {
    case Op::match: case Op::byte: return add(std::move(thread), out);
    case Op::name: return enter_name(std::move(thread), out);
    case Op::chars:
      add(thread, out);
      if (i.b == 0) go_on(thread.pc + 1, thread.context);
      return;
    case Op::split:
      go_on(i.a, thread.context);
      return go_on(i.b, thread.context);
    case Op::jump: return go_on(i.a, thread.context);
    case Op::clear:
      return changed([](Context& c) { c.nodes.clear(), c.used.clear(), c.relation = -1, c.hops = 0, c.inverse = false; });
    case Op::push: return changed([](Context& c) { c.counters.push_back(0), c.used.clear(); });
    case Op::count:
      return changed([&](Context& c) { if (!c.counters.empty() && c.counters.back() < i.a) c.counters.back()++; });
    case Op::pop: return changed([](Context& c) { if (!c.counters.empty()) c.counters.pop_back(); c.used.clear(); });
    case Op::may_move:
      if (passes(i, *thread.context)) changed([&](Context& c) { c.inverse = i.b != 0; });
      return;
    default:
      if (passes(i, *thread.context)) go_on(thread.pc + 1, thread.context);
  }
}

bool TextMachine::passes(const Instruction& i, const Context& context) const {
  const int32_t counter = context.counters.empty() ? 0 : context.counters.back();
  if (i.op == Op::less) return i.a < 0 || counter < i.a;
  if (i.op == Op::at_least) return counter >= i.a;
  if (i.op == Op::unused) return any_unused(*lists_[(size_t)i.a], 0, lists_[(size_t)i.a]->size(), context.used);
  const WalkSpec& walk = *walks_[(size_t)i.a];
  for (int32_t node : context.nodes) {
    if (i.op == Op::may_move && walk.can_move(edges_, node, context.hops, i.b != 0)) return true;
    if (i.op == Op::may_end && walk.ends_at(node, context.hops)) return true;
  }
  return false;
}

// ---- a byte --------------------------------------------------------------------------------------------------------------

Threads TextMachine::step(const Threads& threads, uint8_t byte, int64_t end) const {
  Threads out;
  for (const Thread& thread : threads) step_one(thread, byte, out, end);
  return out;
}

void TextMachine::step_one(const Thread& thread, uint8_t byte, Threads& out, int64_t end) const {
  const Instruction& i = program_[(size_t)thread.pc];
  if (i.op == Op::byte && i.a == byte) close({.pc = thread.pc + 1, .context = thread.context}, out);
  if (i.op == Op::name) step_name(thread, byte, out, end);
  if (i.op == Op::chars) step_chars(thread, byte, out);
}

void TextMachine::step_name(const Thread& thread, uint8_t byte, Threads& out, int64_t end) const {
  const NameList& list = list_of(thread);
  const auto [lo, hi] = narrowed(list, thread.lo, thread.hi, thread.depth, byte);
  if (any_unused(list, lo, hi, thread.context->used)) {
    Thread next = thread;
    next.lo = lo, next.hi = hi, next.depth++;
    add(std::move(next), out);
  }
  if (first_[(size_t)thread.pc + 1][byte] && is_complete(thread))
    for (const Thread& next : completed(thread, end - 1)) step_one(next, byte, out, end);
}

void TextMachine::step_chars(const Thread& thread, uint8_t byte, Threads& out) const {
  const Instruction& i = program_[(size_t)thread.pc];
  Thread next = thread;
  next.state = next_in_char(thread.state, byte, classes_[(size_t)i.a], i.d);
  if (next.state < 0) return;
  if (next.state == 0 && (i.c >= 0 || next.count < i.b)) next.count++;  // counts to what matters: equal states stay equal
  const bool more = next.state != 0 || i.c < 0 || next.count < i.c;
  const bool enough = next.state == 0 && next.count >= i.b;
  if (more) add(next, out);
  if (enough) close({.pc = thread.pc + 1, .context = thread.context}, out);
}

int32_t next_in_char(int32_t state, uint8_t byte, const ByteSet& ascii, int32_t flag) {
  const bool follows = byte >= 0x80 && byte <= 0xBF;
  switch (state) {
    case 0:
      if (flag == kJson && byte == '\\') return 8;
      if (byte < 0x80) return ascii[byte] ? 0 : -1;
      if (flag == kAscii || byte < 0xC2 || byte > 0xF4) return -1;
      if (byte < 0xE0) return 1;
      if (byte < 0xF0) return byte == 0xE0 ? 4 : byte == 0xED ? 5 : 2;
      return byte == 0xF0 ? 6 : byte == 0xF4 ? 7 : 3;
    case 1: case 2: case 3: return follows ? state - 1 : -1;
    case 4: return follows && byte >= 0xA0 ? 1 : -1;  // no longer than needed
    case 5: return follows && byte < 0xA0 ? 1 : -1;   // no surrogates
    case 6: return follows && byte >= 0x90 ? 2 : -1;
    case 7: return follows && byte < 0x90 ? 2 : -1;   // up to U+10FFFF
    default: return byte && std::string_view("\"\\/bfnrt").find((char)byte) != std::string_view::npos ? 0 : -1;
  }
}

// ---- names ---------------------------------------------------------------------------------------------------------------

const NameList& TextMachine::list_of(const Thread& thread) const {
  const Instruction& i = program_[(size_t)thread.pc];
  return i.a == kFixed ? *lists_[(size_t)i.b] : *thread.context->list;
}

void TextMachine::enter_name(Thread thread, Threads& out) const {
  const Instruction& i = program_[(size_t)thread.pc];
  if (i.a != kFixed) {
    auto context = std::make_shared<Context>(*thread.context);
    context->list = dynamic_list(i, *thread.context);
    thread.context = std::move(context);
  }
  thread.lo = thread.depth = 0;
  thread.hi = list_of(thread).size();
  if (any_unused(list_of(thread), 0, thread.hi, thread.context->used)) add(std::move(thread), out);
}

bool TextMachine::is_complete(const Thread& thread) const {
  const NameList& list = list_of(thread);
  return thread.depth > 0 && list.text(thread.lo).size() == (size_t)thread.depth &&
         any_unused(list, thread.lo, thread.lo + 1, thread.context->used);
}

// The threads after the name that a thread has read, which ends at byte `end` of the text.
Threads TextMachine::completed(const Thread& thread, int64_t end) const {
  const Instruction& i = program_[(size_t)thread.pc];
  const NameList& list = list_of(thread);
  const int32_t group = list.group(thread.lo);
  auto context = std::make_shared<Context>(*thread.context);
  context->list = nullptr;
  context->trail = std::make_shared<Trail>(Trail{thread.context->trail, thread.pc, group, end});
  if (i.c == kSetNodes || i.c == kStep) {  // of targets, the list has those that an edge leads to
    context->nodes.clear();
    for (int32_t item : list.index->items(group))
      if (list.has_item(item)) context->nodes.push_back(item);
    context->hops = i.c == kStep ? context->hops + 1 : 0;
    context->relation = -1;
  } else if (i.c == kSetRelation) {
    context->relation = list.index->items(group)[0];
  } else if (i.c == kUse) {
    context->used.insert(std::lower_bound(context->used.begin(), context->used.end(), group), group);
  }
  Threads out;
  close({.pc = thread.pc + 1, .context = std::move(context)}, out);
  return out;
}

std::pair<int32_t, int32_t> narrowed(const NameList& list, int32_t lo, int32_t hi, int32_t depth, uint8_t byte) {
  if (lo < hi && list.text(lo).size() == (size_t)depth) lo++;
  const auto first_not = [&](int32_t begin, int32_t end, auto before) {
    while (begin < end) {
      const int32_t middle = begin + (end - begin) / 2;
      if (before((uint8_t)list.text(middle)[(size_t)depth])) begin = middle + 1;
      else end = middle;
    }
    return begin;
  };
  lo = first_not(lo, hi, [&](uint8_t b) { return b < byte; });
  if (lo == hi || (uint8_t)list.text(lo)[(size_t)depth] != byte) return {lo, lo};
  int32_t step = 1, known = lo;  // the end is near in most cases
  while (known + step < hi && (uint8_t)list.text(known + step)[(size_t)depth] == byte) known += step, step *= 2;
  return {lo, first_not(known + 1, std::min(hi, known + step), [&](uint8_t b) { return b <= byte; })};
}

bool any_unused(const NameList& list, int32_t lo, int32_t hi, const std::vector<int32_t>& used) {
  if (lo >= hi || used.empty()) return lo < hi;
  const auto begin = std::lower_bound(used.begin(), used.end(), list.group(lo));
  return std::upper_bound(begin, used.end(), list.group(hi - 1)) - begin < hi - lo;
}

// ---- questions -----------------------------------------------------------------------------------------------------------

bool TextMachine::may_end(const Threads& threads) const {
  bool complete;
  final_context(threads, 0, complete);
  return complete;
}

std::shared_ptr<const Context> TextMachine::final_context(const Threads& threads, int64_t end, bool& complete) const {
  complete = true;
  for (const Thread& thread : threads) {
    const Op op = program_[(size_t)thread.pc].op;
    if (op == Op::match) return thread.context;
    if (op != Op::name || !is_complete(thread)) continue;
    for (const Thread& next : completed(thread, end))
      if (program_[(size_t)next.pc].op == Op::match) return next.context;
  }
  complete = false;
  return threads.empty() ? nullptr : threads[0].context;
}

ByteSet TextMachine::next_bytes(const Threads& threads, int limit) const {
  ByteSet bytes;
  for (const Thread& thread : threads)
    if ((int)bytes.count() < limit) add_next_bytes(thread, bytes, limit);
  return bytes;
}

void TextMachine::add_next_bytes(const Thread& thread, ByteSet& bytes, int limit) const {
  const Instruction& i = program_[(size_t)thread.pc];
  if (i.op == Op::byte) bytes.set((size_t)i.a);
  if (i.op == Op::chars)
    for (int byte = 0; byte < 256; byte++)
      if (next_in_char(thread.state, (uint8_t)byte, classes_[(size_t)i.a], i.d) >= 0) bytes.set((size_t)byte);
  if (i.op != Op::name) return;
  const NameList& list = list_of(thread);
  int32_t place = thread.lo + (list.text(thread.lo).size() == (size_t)thread.depth);
  while (place < thread.hi && (int)bytes.count() < limit) {
    const uint8_t byte = (uint8_t)list.text(place)[(size_t)thread.depth];
    const int32_t stop = narrowed(list, place, thread.hi, thread.depth, byte).second;
    if (any_unused(list, place, stop, thread.context->used)) bytes.set(byte);
    place = stop;
  }
  if (is_complete(thread))
    for (const Thread& next : completed(thread, 0))
      if ((int)bytes.count() < limit) add_next_bytes(next, bytes, limit);
}

}  // namespace vglm
