// The lists of names that depend on where a walk is: which relations go on from its nodes, and where they lead.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "text_machine.hpp"

namespace vglm {
namespace {

constexpr size_t kLarge = 64;  // names: lists of more are kept

uint64_t next_list_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

// The edges at a node in one direction, in runs of one relation.
class Runs {
 public:
  Runs(const Adjacency& edges, int32_t node, bool inverse) : edges_(edges), inverse_(inverse) {
    const auto& start = inverse ? edges.in_start : edges.out_start;
    place_ = start[(size_t)node];
    end_ = start[(size_t)node + 1];
  }

  bool next() {  // to the next run; a relation's edges are consecutive
    if (place_ == end_) return false;
    begin_ = place_;
    relation_ = relation_at(place_);
    place_ = upper(place_, end_, [&](int64_t p) { return relation_at(p) <= relation_; });
    return true;
  }
  int32_t relation() const { return relation_; }
  int64_t size() const { return place_ - begin_; }
  int32_t other(int64_t i) const { return other_at(begin_ + i); }
  bool seek(int32_t relation) {
    while (next())
      if (relation_ == relation) return true;
    return false;
  }

 private:
  template <class Before>
  static int64_t upper(int64_t begin, int64_t end, Before before) {
    int64_t step = 1;
    while (begin + step < end && before(begin + step)) begin += step, step *= 2;
    end = std::min(end, begin + step);
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      if (before(middle)) begin = middle + 1;
      else end = middle;
    }
    return begin;
  }
  int32_t edge(int64_t place) const { return inverse_ ? edges_.in_edge[(size_t)place] : (int32_t)place; }
  int32_t relation_at(int64_t place) const { return edges_.relation[(size_t)edge(place)]; }
  int32_t other_at(int64_t place) const { return (inverse_ ? edges_.source : edges_.target)[(size_t)edge(place)]; }

  const Adjacency& edges_;
  bool inverse_;
  int64_t begin_ = 0, place_, end_;
  int32_t relation_ = -1;
};

template <class T>
void append(std::string& key, const T& value) {
  key.append((const char*)&value, sizeof value);
}

void append(std::string& key, const std::vector<int32_t>& values) {
  append(key, values.size());
  key.append((const char*)values.data(), values.size() * sizeof(int32_t));
}

}  // namespace

// ---- lists ---------------------------------------------------------------------------------------------------------------

NameList list_of_all(const StringIndex& index) { return {.index = &index, .all = true, .groups = {}, .items = {}, .id = next_list_id()}; }

NameList list_of_items(const StringIndex& index, std::vector<int32_t> items) {
  NameList list{.index = &index, .all = false, .groups = {}, .items = std::move(items), .id = next_list_id()};
  const auto nameless = [&](int32_t item) { return index.group_of(item) < 0; };
  list.items.erase(std::remove_if(list.items.begin(), list.items.end(), nameless), list.items.end());
  if (list.items.size() > (size_t)index.num_groups() / 16) {
    std::vector<bool> named((size_t)index.num_groups());
    for (int32_t item : list.items) named[(size_t)index.group_of(item)] = true;
    for (int32_t group = 0; group < index.num_groups(); group++)
      if (named[(size_t)group]) list.groups.push_back(group);
  } else {
    for (int32_t item : list.items) list.groups.push_back(index.group_of(item));
    std::sort(list.groups.begin(), list.groups.end());
    list.groups.erase(std::unique(list.groups.begin(), list.groups.end()), list.groups.end());
  }
  return list;
}

bool NameList::has_item(int32_t item) const { return all || std::binary_search(items.begin(), items.end(), item); }

bool NameList::operator==(const NameList& other) const {
  return id == other.id || (index == other.index && all == other.all && groups == other.groups && items == other.items);
}

void append_key(const Thread& thread, std::string& key) {
  const Context& c = *thread.context;
  for (int32_t value : {thread.pc, thread.lo, thread.hi, thread.depth, thread.count, thread.state, c.relation, c.hops, (int32_t)c.inverse})
    append(key, value);
  append(key, c.nodes);
  append(key, c.used);
  append(key, c.counters);
  const bool small = c.list && !c.list->all && c.list->items.size() <= kLarge;
  append(key, c.list ? small ? 2 : 1 : 0);
  if (small) append(key, c.list->items);
  else if (c.list) append(key, c.list->id);
}

// ---- walks ---------------------------------------------------------------------------------------------------------------

bool WalkSpec::reaches(const Adjacency& edges, int32_t node, int32_t hops) const {
  if (hops > max_hops || nodes->group_of(node) < 0) return false;
  if (!reach.empty()) {
    const uint32_t most = (2u << (max_hops - hops)) - 1, least = (1u << std::max(0, min_hops - hops)) - 1;
    return reach[(size_t)node] & (most & ~least);
  }
  return hops >= min_hops || can_move(edges, node, hops, false) || (inverse && can_move(edges, node, hops, true));
}

bool WalkSpec::ends_at(int32_t node, int32_t hops) const {
  return hops >= min_hops && (reach.empty() || (reach[(size_t)node] & 1));
}

bool WalkSpec::can_move(const Adjacency& edges, int32_t node, int32_t hops, bool against) const {
  if (hops >= max_hops) return false;
  for (Runs runs(edges, node, against); runs.next();) {
    if (!allows(runs.relation())) continue;
    for (int64_t i = 0; i < runs.size(); i++)
      if (reaches(edges, runs.other(i), hops + 1)) return true;
  }
  return false;
}

std::vector<uint32_t> walk_reach(const WalkSpec& walk, const Adjacency& edges, std::span<const uint8_t> ends) {
  const size_t num_nodes = (size_t)edges.num_nodes();
  std::vector<uint32_t> reach(num_nodes);
  const auto named = [&](int32_t node) { return walk.nodes->group_of(node) >= 0; };
  for (size_t node = 0; node < num_nodes; node++) reach[node] = named((int32_t)node) && (ends.empty() || ends[node]);
  for (int32_t length = 1; length <= walk.max_hops; length++) {
    const uint32_t shorter = 1u << (length - 1), bit = 1u << length;
    for (size_t edge = 0; edge < edges.source.size(); edge++) {
      if (!walk.allows(edges.relation[edge])) continue;
      const int32_t from = edges.source[edge], to = edges.target[edge];
      if (!named(from) || !named(to)) continue;
      if (reach[(size_t)to] & shorter) reach[(size_t)from] |= bit;
      if (walk.inverse && (reach[(size_t)from] & shorter)) reach[(size_t)to] |= bit;
    }
  }
  return reach;
}

std::shared_ptr<const NameList> TextMachine::relations(const WalkSpec& walk, const Context& context) const {
  std::vector<int32_t> found;
  for (int32_t node : context.nodes)
    for (Runs runs(edges_, node, context.inverse); runs.next();) {
      if (!walk.allows(runs.relation())) continue;
      for (int64_t i = 0; i < runs.size(); i++)
        if (walk.reaches(edges_, runs.other(i), context.hops + 1)) {
          found.push_back(runs.relation());
          break;
        }
    }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return std::make_shared<NameList>(list_of_items(*walk.relation_names, std::move(found)));
}

std::shared_ptr<const NameList> TextMachine::targets(const WalkSpec& walk, const Context& context) const {
  std::string key;
  append(key, &walk);
  append(key, context.nodes);
  for (int32_t value : {context.relation, context.hops, (int32_t)context.inverse}) append(key, value);
  if (auto kept = lists_cache_.find(key)) return kept;
  std::vector<int32_t> found;
  for (int32_t node : context.nodes) {
    Runs runs(edges_, node, context.inverse);
    if (!runs.seek(context.relation)) continue;
    for (int64_t i = 0; i < runs.size(); i++)
      if (walk.reaches(edges_, runs.other(i), context.hops + 1)) found.push_back(runs.other(i));
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  auto list = std::make_shared<NameList>(list_of_items(*walk.nodes, std::move(found)));
  if (list->items.size() > kLarge) lists_cache_.put(key, list, 4 * (list->items.size() + list->groups.size()));
  return list;
}

std::shared_ptr<const NameList> TextMachine::dynamic_list(const Instruction& i, const Context& context) const {
  const WalkSpec& walk = *walks_[(size_t)i.b];
  if (i.a == kRelations) return relations(walk, context);
  if (i.a == kTargets) return targets(walk, context);
  return std::make_shared<NameList>(list_of_items(*walk.nodes, context.nodes));
}

}  // namespace vglm
