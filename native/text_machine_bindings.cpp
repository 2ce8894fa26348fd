// vglm._native.StringIndex, NameList, TokenTrie, Adjacency, WalkSpec, TextMachine, TextMatcher: constrained texts.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "arrays.hpp"
#include "text_machine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vglm {
namespace {

using Table = Array<int32_t, 2>;
using ByteTable = Array<uint8_t, 2>;
using Masks = WritableArray<uint32_t, 2>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <class T>
nb::object to_numpy(const T* values, size_t count) {
  T* data = new T[count + 1];
  nb::capsule owner(data, [](void* p) noexcept { delete[] (T*)p; });
  std::copy(values, values + count, data);
  return nb::cast(nb::ndarray<nb::numpy, T>(data, 1, &count, owner));
}

// A column of strings, and the arrays that it lies in.
struct Column {
  Bytes data;
  Longs offsets;

  StringsView strings() const {
    const std::span<const int64_t> ends = view(offsets);
    require(!ends.empty() && ends[0] == 0 && ends.back() == (int64_t)data.shape(0) && ends.size() < INT32_MAX,
            "strings: the offsets do not match the data");
    for (size_t i = 0; i + 1 < ends.size(); i++) require(ends[i] <= ends[i + 1], "strings: the offsets do not ascend");
    return {view(data), ends};
  }
};

std::span<const uint8_t> optional_flags(const std::optional<Bytes>& flags, size_t size, const char* what) {
  require(!flags || flags->shape(0) == size, what);
  return flags ? view(*flags) : std::span<const uint8_t>{};
}

bool any_flagged(std::span<const uint8_t> data, const uint8_t* flags) {
  uint8_t found = 0;
  for (size_t i = 0; i < data.size() && !found;)  // in blocks: a branch per byte would cost more than the look-up
    for (const size_t end = std::min(data.size(), i + 4096); i < end; i++) found |= flags[data[i]];
  return found;
}

bool contains_any(Bytes data, Bytes flags) {
  require(flags.shape(0) == 256, "contains_any: 256 flags");
  return any_flagged(view(data), flags.data());
}

// An index and the column that it reads.
class PyStringIndex {
 public:
  PyStringIndex(Bytes data, Longs offsets, std::optional<Bytes> left_out) : column_{data, offsets} {
    const StringsView strings = column_.strings();
    const auto flags = optional_flags(left_out, strings.size(), "left_out must have an entry for each string");
    nb::gil_scoped_release release;
    index_ = std::make_unique<StringIndex>(strings, flags);
  }
  PyStringIndex(const PyStringIndex& before, Column before_keys, Column column, Column keys, std::optional<Bytes> left_out)
      : column_(column) {
    const StringsView strings = column_.strings(), old = before_keys.strings(), now = keys.strings();
    require(old.size() == (size_t)before.index().num_items() && now.size() == strings.size(), "a key for each string");
    for (const StringsView& names : {old, now})
      for (size_t i = 0; i + 1 < names.size(); i++) require(names[i] < names[i + 1], "keys must ascend");
    const auto flags = optional_flags(left_out, strings.size(), "left_out must have an entry for each string");
    nb::gil_scoped_release release;
    index_ = std::make_unique<StringIndex>(before.index(), old, strings, now, flags);
  }

  const StringIndex& index() const { return *index_; }
  int32_t checked(int32_t group) const {
    if (group < 0 || group >= index_->num_groups()) throw nb::index_error("no such group");
    return group;
  }
  int32_t group_of(int32_t item) const {
    if (item < 0 || item >= index_->num_items()) throw nb::index_error("no such item");
    return index_->group_of(item);
  }

  // The items whose strings have none of these bytes, ascending; None: all that there are.
  nb::object items_without(nb::bytes excluded) const {
    uint8_t flags[256] = {};
    for (size_t i = 0; i < excluded.size(); i++) flags[(uint8_t)excluded.c_str()[i]] = 1;
    const StringsView strings = {view(column_.data), view(column_.offsets)};
    if (!any_flagged(strings.data, flags)) return nb::none();
    const auto has = [&](uint8_t c) { return flags[c] != 0; };
    std::vector<int32_t> items;
    for (int32_t item = 0; item < index_->num_items(); item++) {
      const std::string_view text = strings[(size_t)item];
      if (index_->group_of(item) >= 0 && std::none_of(text.begin(), text.end(), has)) items.push_back(item);
    }
    return to_numpy(items.data(), items.size());
  }

 private:
  Column column_;
  std::unique_ptr<StringIndex> index_;
};

NameList make_list(const PyStringIndex& index, std::optional<Ints> items) {
  if (!items) return list_of_all(index.index());
  const std::span<const int32_t> chosen = view(*items);
  for (size_t i = 0; i < chosen.size(); i++) {
    require(chosen[i] >= 0 && chosen[i] < index.index().num_items(), "NameList: an item is out of range");
    require(i == 0 || chosen[i - 1] < chosen[i], "NameList: items must ascend");
  }
  return list_of_items(index.index(), {chosen.begin(), chosen.end()});
}

TokenTrie make_trie(Bytes data, Longs offsets, Ints ids, Ints ends, int32_t vocab_size) {
  const StringsView tokens = Column{data, offsets}.strings();
  require(tokens.size() == ids.shape(0), "TokenTrie: an id for each token");
  require(vocab_size > 0 && vocab_size < (1 << 28), "TokenTrie: vocab_size is out of range");
  for (const Ints& tokens_of : {ids, ends})
    for (int32_t id : view(tokens_of)) require(id >= 0 && id < vocab_size, "TokenTrie: a token id is out of range");
  return TokenTrie(tokens, view(ids), view(ends), vocab_size);
}

// For each string whether its characters are tokens, or made of tokens of one byte.
nb::object spellable(const TokenTrie& trie, Bytes data, Longs offsets) {
  const StringsView strings = Column{data, offsets}.strings();
  const auto known = [&](std::string_view text) {
    int32_t node = TokenTrie::kRoot;
    for (size_t i = 0; i < text.size() && node >= 0; i++) node = trie.child(node, (uint8_t)text[i]);
    return node > 0 && !trie.tokens(node).empty();
  };
  std::vector<uint8_t> found(strings.size());
  for (size_t s = 0; s < strings.size(); s++) {
    const std::string_view text = strings[s];
    bool good = true;
    for (size_t begin = 0, end; begin < text.size() && good; begin = end) {
      for (end = begin + 1; end < text.size() && ((uint8_t)text[end] & 0xC0) == 0x80;) end++;
      good = known(text.substr(begin, end - begin));
      for (size_t i = begin; i < end && !good; i++)
        if (!known(text.substr(i, 1))) break;
        else if (i + 1 == end) good = true;
    }
    found[s] = good;
  }
  return to_numpy(found.data(), found.size());
}

// Strings as they stand between the quotes of a JSON string, or None if none of them changes.
nb::object json_escaped(Bytes data, Longs offsets) {
  const StringsView strings = Column{data, offsets}.strings();
  const auto plain = [](uint8_t c) { return c >= 0x20 && c != '"' && c != '\\'; };
  if (std::all_of(strings.data.begin(), strings.data.end(), plain)) return nb::none();
  std::string out;
  std::vector<int64_t> ends{0};
  for (size_t s = 0; s < strings.size(); s++) {
    for (char c : strings[s]) {
      const size_t short_form = c ? std::string_view("\"\\\b\f\n\r\t").find(c) : std::string_view::npos;
      char escape[8];
      if (short_form != std::string_view::npos) out += {'\\', "\"\\bfnrt"[short_form]};
      else if (!plain((uint8_t)c)) out.append(escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", (unsigned)(uint8_t)c));
      else out += c;
    }
    ends.push_back((int64_t)out.size());
  }
  return nb::make_tuple(to_numpy((const uint8_t*)out.data(), out.size()), to_numpy(ends.data(), ends.size()));
}

// Edges and the arrays that they lie in.
class PyAdjacency {
 public:
  PyAdjacency(Longs out_start, Ints source, Ints target, Ints relation, int32_t num_relations, std::optional<Longs> in_start,
              std::optional<Ints> in_edge)
      : out_start_(out_start), source_(source), target_(target), relation_(relation), in_start_(in_start), in_edge_(in_edge),
        num_relations_(num_relations) {
    require(in_start.has_value() == in_edge.has_value(), "Adjacency: in_start and in_edge come together");
    edges_ = {view(out_start), in_start ? view(*in_start) : std::span<const int64_t>{}, view(source), view(target), view(relation),
              in_edge ? view(*in_edge) : std::span<const int32_t>{}};
    nb::gil_scoped_release release;
    check();
  }

  const Adjacency& edges() const { return edges_; }
  int32_t num_relations() const { return num_relations_; }
  bool has_inverse() const { return in_start_.has_value(); }

 private:
  void check() const {
    const size_t count = edges_.source.size();
    require(count < INT32_MAX && edges_.target.size() == count && edges_.relation.size() == count, "Adjacency: lengths differ");
    check_starts(edges_.out_start, edges_.out_start.size(), count);
    if (has_inverse()) {
      check_starts(edges_.in_start, edges_.out_start.size(), count);
      require(edges_.in_edge.size() == count, "Adjacency: in_edge has another length");
      check_range(edges_.in_edge, (int64_t)count);
    }
    check_range(edges_.source, edges_.num_nodes());
    check_range(edges_.target, edges_.num_nodes());
    check_range(edges_.relation, num_relations_);
  }
  static void check_starts(std::span<const int64_t> start, size_t size, size_t count) {
    require(!start.empty() && start.size() == size && size < INT32_MAX && start[0] == 0 && start.back() == (int64_t)count,
            "Adjacency: starts do not fit");
    for (size_t i = 0; i + 1 < start.size(); i++) require(start[i] <= start[i + 1], "Adjacency: starts must not fall");
  }
  static void check_range(std::span<const int32_t> values, int64_t end) {
    for (int32_t value : values) require(value >= 0 && value < end, "Adjacency: a number is out of range");
  }

  Longs out_start_;
  Ints source_, target_, relation_;
  std::optional<Longs> in_start_;
  std::optional<Ints> in_edge_;
  int32_t num_relations_;
  Adjacency edges_;
};

WalkSpec make_walk(const PyAdjacency& edges, const PyStringIndex& nodes, const PyStringIndex& relation_names, int32_t min_hops,
                   int32_t max_hops, bool inverse, std::optional<Bytes> relations, std::optional<Bytes> ends) {
  require(0 <= min_hops && min_hops <= max_hops && 1 <= max_hops && max_hops <= kMaxHops, "WalkSpec: hops are out of range");
  require(!inverse || edges.has_inverse(), "WalkSpec: the edges have no inverse");
  require(nodes.index().num_items() == edges.edges().num_nodes(), "WalkSpec: a name for each node");
  require(relation_names.index().num_items() == edges.num_relations(), "WalkSpec: a name for each relation");
  const auto allowed = optional_flags(relations, (size_t)edges.num_relations(), "WalkSpec: an entry for each relation");
  const auto may_end = optional_flags(ends, (size_t)edges.edges().num_nodes(), "WalkSpec: an entry for each node");
  WalkSpec walk{&nodes.index(), &relation_names.index(), min_hops, max_hops, inverse, {allowed.begin(), allowed.end()}, {}};
  nb::gil_scoped_release release;
  if (min_hops > 1 || ends) walk.reach = walk_reach(walk, edges.edges(), may_end);
  return walk;
}

// Those of the nodes (ascending; None: all) where such a walk may start.
nb::object walk_starts(const WalkSpec& walk, const PyAdjacency& edges, std::optional<Ints> nodes) {
  const int32_t count = nodes ? (int32_t)nodes->shape(0) : edges.edges().num_nodes();
  require(edges.edges().num_nodes() == walk.nodes->num_items(), "WalkSpec: other edges");
  std::vector<int32_t> found;
  for (int32_t i = 0; i < count; i++) {
    const int32_t node = nodes ? nodes->data()[i] : i;
    require(node >= 0 && node < edges.edges().num_nodes(), "WalkSpec: a node is out of range");
    if (walk.reaches(edges.edges(), node, 0)) found.push_back(node);
  }
  return to_numpy(found.data(), found.size());
}

std::vector<Instruction> read_program(const Table& table) {
  require(table.shape(1) == 5, "TextMachine: five numbers for each instruction");
  std::vector<Instruction> program;
  for (size_t i = 0; i < table.shape(0); i++) {
    const int32_t* row = table.data() + 5 * i;
    program.push_back({(Op)row[0], row[1], row[2], row[3], row[4]});
  }
  return program;
}

template <class T>
std::vector<const T*> pointers(nb::tuple objects) {
  std::vector<const T*> found;
  for (nb::handle object : objects) found.push_back(&nb::cast<const T&>(object));
  return found;
}

// Tuples, because what is in them must stay as long as the machine.
void make_machine(TextMachine* self, const TokenTrie& trie, Table program, nb::tuple list_objects, ByteTable classes,
                  const PyAdjacency& edges, nb::tuple walk_objects) {
  require(classes.shape(1) == 256, "TextMachine: 256 flags for each class");
  auto lists = pointers<NameList>(list_objects);
  auto walks = pointers<WalkSpec>(walk_objects);
  for (const WalkSpec* walk : walks) {
    require(walk->nodes->num_items() == edges.edges().num_nodes(), "TextMachine: a walk over other nodes");
    require(!walk->inverse || edges.has_inverse(), "TextMachine: the edges have no inverse");
    require(walk->relation_names->num_items() == edges.num_relations(), "TextMachine: a walk over other relations");
  }
  std::vector<ByteSet> sets(classes.shape(0));
  for (size_t i = 0; i < 256 * sets.size(); i++) sets[i / 256][i % 256] = classes.data()[i] != 0;
  new (self) TextMachine(trie, read_program(program), std::move(lists), std::move(sets), edges.edges(), std::move(walks));
}

// (bytes that were read, whether the text may end there, [(instruction, group, end of the name)] of the names in it)
nb::object read_text(const TextMachine& machine, nb::bytes text) {
  Threads threads = machine.start();
  int64_t length = 0;
  for (; length < (int64_t)text.size(); length++) {
    Threads next = machine.step(threads, (uint8_t)text.c_str()[length], length + 1);
    if (next.empty()) break;
    threads = std::move(next);
  }
  bool complete;
  const auto context = machine.final_context(threads, length, complete);
  nb::list names;
  for (const Trail* name = context ? context->trail.get() : nullptr; name; name = name->before.get())
    names.insert(0, nb::make_tuple(name->pc, name->group, name->end));
  return nb::make_tuple(length, complete, names);
}

nb::bytes forced(TextMatcher& matcher) {
  const std::string text = matcher.forced();
  return nb::bytes(text.data(), text.size());
}

void fill_masks(const std::vector<const TextMatcher*>& matchers, Masks masks) {
  require(masks.shape(0) == matchers.size(), "a mask for each matcher");
  for (const TextMatcher* matcher : matchers)
    require(matcher && masks.shape(1) == matcher->machine().tokens().words(), "masks must be [G, ceil(vocab / 32)]");
  nb::gil_scoped_release release;
  for (size_t i = 0; i < matchers.size(); i++) matchers[i]->fill(masks.data() + i * masks.shape(1));
}

}  // namespace

void bind_text_machine(nb::module_& m) {
  m.def("json_escaped", &json_escaped, "data"_a, "offsets"_a);
  m.def("contains_any", &contains_any, "data"_a, "flags"_a);

  nb::class_<PyStringIndex>(m, "StringIndex")
      .def(nb::init<Bytes, Longs, std::optional<Bytes>>(), "data"_a, "offsets"_a, "left_out"_a.none() = nb::none())
      .def("updated",
           [](const PyStringIndex& self, Bytes old_key_data, Longs old_key_offsets, Bytes data, Longs offsets, Bytes key_data,
              Longs key_offsets, std::optional<Bytes> left_out) {
             return new PyStringIndex(self, {old_key_data, old_key_offsets}, {data, offsets}, {key_data, key_offsets}, left_out);
           },
           "old_key_data"_a, "old_key_offsets"_a, "data"_a, "offsets"_a, "key_data"_a, "key_offsets"_a,
           "left_out"_a.none() = nb::none(), nb::rv_policy::take_ownership)
      .def_prop_ro("num_groups", [](const PyStringIndex& s) { return s.index().num_groups(); })
      .def_prop_ro("sorted_afresh", [](const PyStringIndex& s) { return s.index().sorted_afresh(); })
      .def_prop_ro("nbytes", [](const PyStringIndex& s) { return s.index().bytes(); })
      .def("group_of", &PyStringIndex::group_of, "item"_a)
      .def("items",
           [](const PyStringIndex& s, int32_t group) {
             const auto items = s.index().items(s.checked(group));
             return to_numpy(items.data(), items.size());
           },
           "group"_a)
      .def("text",
           [](const PyStringIndex& s, int32_t group) {
             const std::string_view text = s.index().text(s.checked(group));
             return nb::bytes(text.data(), text.size());
           },
           "group"_a)
      .def("find", [](const PyStringIndex& s, nb::bytes text) { return s.index().find({text.c_str(), text.size()}); }, "text"_a)
      .def("items_without", &PyStringIndex::items_without, "excluded"_a);

  nb::class_<NameList>(m, "NameList")
      .def("__init__", [](NameList* self, const PyStringIndex& index, std::optional<Ints> items) { new (self) NameList(make_list(index, items)); },
           "index"_a, "items"_a.none() = nb::none(), nb::keep_alive<1, 2>())
      .def("__len__", [](const NameList& list) { return list.size(); })
      .def("__contains__", [](const NameList& list, int32_t item) { return list.has_item(item); });

  nb::class_<TokenTrie>(m, "TokenTrie")
      .def("__init__", [](TokenTrie* self, Bytes data, Longs offsets, Ints ids, Ints ends, int32_t vocab_size) {
             new (self) TokenTrie(make_trie(data, offsets, ids, ends, vocab_size));
           },
           "data"_a, "offsets"_a, "ids"_a, "ends"_a, "vocab_size"_a)
      .def_prop_ro("num_nodes", &TokenTrie::num_nodes)
      .def("spellable", &spellable, "data"_a, "offsets"_a);

  nb::class_<PyAdjacency>(m, "Adjacency")
      .def(nb::init<Longs, Ints, Ints, Ints, int32_t, std::optional<Longs>, std::optional<Ints>>(), "out_start"_a, "source"_a,
           "target"_a, "relation"_a, "num_relations"_a, "in_start"_a.none() = nb::none(), "in_edge"_a.none() = nb::none());

  nb::class_<WalkSpec>(m, "WalkSpec")
      .def("__init__",
           [](WalkSpec* self, const PyAdjacency& edges, const PyStringIndex& nodes, const PyStringIndex& relation_names,
              int32_t min_hops, int32_t max_hops, bool inverse, std::optional<Bytes> relations, std::optional<Bytes> ends) {
             new (self) WalkSpec(make_walk(edges, nodes, relation_names, min_hops, max_hops, inverse, relations, ends));
           },
           "edges"_a, "nodes"_a, "relation_names"_a, "min_hops"_a, "max_hops"_a, "inverse"_a = false,
           "relations"_a.none() = nb::none(), "ends"_a.none() = nb::none(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>())
      .def("starts", &walk_starts, "edges"_a, "nodes"_a.none() = nb::none());

  nb::class_<TextMachine>(m, "TextMachine")
      .def("__init__", &make_machine, "tokens"_a, "program"_a, "lists"_a, "classes"_a, "edges"_a, "walks"_a, nb::keep_alive<1, 2>(),
           nb::keep_alive<1, 4>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>())
      .def("read", &read_text, "text"_a)
      .def_prop_ro("cached_bytes", &TextMachine::cached_bytes);

  nb::class_<TextMatcher>(m, "TextMatcher")
      .def(nb::init<const TextMachine&>(), "machine"_a, nb::keep_alive<1, 2>())
      .def_prop_ro("finished", &TextMatcher::finished)
      .def("accept", &TextMatcher::accept, "token"_a)
      .def("forced", &forced)
      .def("take", [](TextMatcher& self, Ints tokens) { return self.take(view(tokens)); }, "tokens"_a)
      .def_static("fill_masks", &fill_masks, "matchers"_a, "masks"_a.noconvert());
}

}  // namespace vglm
