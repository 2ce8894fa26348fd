// The Python module vglm._native. Shapes and types are checked here; vglm/_native.pyi documents them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "model.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vglm {

void bind_graph_walk(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_peak(nb::module_& m);
void bind_propagation(nb::module_& m);
void bind_sampler(nb::module_& m);
void bind_text_machine(nb::module_& m);

namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Seeds = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Kinds = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Pages = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WritablePages = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Masks = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> new_array(std::initializer_list<size_t> shape, T** out) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  T* data = new T[n ? n : 1]();
  nb::capsule owner(data, [](void* p) noexcept { delete[] (T*)p; });
  *out = data;
  return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.begin(), owner);
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// ---- weights -----------------------------------------------------------------------------------------------------------

const float* floats(nb::handle dict, const std::string& key, int64_t size, std::vector<nb::object>& keep) {
  nb::dict d = nb::borrow<nb::dict>(dict);
  if (!d.contains(key.c_str())) return nullptr;
  auto a = nb::cast<Floats>(d[key.c_str()]);
  if ((int64_t)a.shape(0) < size) throw std::invalid_argument(key + ": too short");
  keep.push_back(nb::borrow(d[key.c_str()]));
  return a.data();
}

Linear read_linear(nb::dict w, const std::string& name, std::vector<nb::object>& keep) {
  Linear l;
  const std::string type = nb::cast<std::string>(w["type"]);
  l.type = type == "int8" ? WeightType::int8 : type == "int4" ? WeightType::int4 : WeightType::bf16;
  l.n = nb::cast<int32_t>(w["n"]);
  l.k = nb::cast<int32_t>(w["k"]);
  if (l.n < 1 || l.k < 1 || l.n % kColumns || l.k % kDepth) throw std::invalid_argument(name + ": n and k must be multiples of 64");
  auto data = nb::cast<Bytes>(w["data"]);
  if ((int64_t)data.shape(0) != l.n / kGroup * group_bytes(l.type, l.k)) throw std::invalid_argument(name + ": data of the wrong size");
  if ((uintptr_t)data.data() % 64) throw std::invalid_argument(name + ": data must be aligned to 64 bytes");
  keep.push_back(nb::borrow(w["data"]));
  l.data = data.data();
  l.scale = floats(w, "scale", l.n, keep);
  l.bias = floats(w, "bias", l.n, keep);
  if (l.type == WeightType::int8 && !l.scale) throw std::invalid_argument(name + ": scale is missing");
  return l;
}

// A model and the Python arrays that its weights lie in.
class PyModel {
 public:
  PyModel(nb::dict spec, nb::dict weights, int threads, const std::string& isa) {
    require(threads >= 1 && threads <= 512, "threads must be 1 to 512");
    const Kernels* kernels = find_kernels(isa.c_str());
    if (!kernels) throw std::invalid_argument("instruction set '" + isa + "' is not available on this machine");
    ModelSpec s;
    auto get = [&](const char* key, auto& value) { value = nb::cast<std::decay_t<decltype(value)>>(spec[key]); };
    get("layers", s.layers);
    get("hidden", s.hidden);
    get("heads", s.heads);
    get("kv_heads", s.kv_heads);
    get("head_dim", s.head_dim);
    get("norm_dim", s.norm_dim);
    get("vocab", s.vocab);
    get("max_position", s.max_position);
    get("rotary_dim", s.rotary_dim);
    get("eps", s.eps);
    get("attention_scale", s.attention_scale);
    get("residual_scale", s.residual_scale);
    get("embedding_scale", s.embedding_scale);
    get("logit_scale", s.logit_scale);
    model_ = std::make_unique<Model>(s, read(s, weights), threads, *kernels);
  }

  Model& model() { return *model_; }

 private:
  Linear linear(const nb::dict& d, const std::string& name, std::deque<Linear>& low_rank) {
    if (!d.contains(name.c_str())) throw std::invalid_argument(name + ": missing");
    nb::dict w = nb::cast<nb::dict>(d[name.c_str()]);
    Linear l = read_linear(w, name, keep_);
    if (w.contains("low_rank")) {
      low_rank.push_back(read_linear(nb::cast<nb::dict>(w["low_rank"]), name + ".low_rank", keep_));
      l.low_rank = &low_rank.back();
    }
    return l;
  }

  Weights read(const ModelSpec& s, nb::dict d) {
    Weights w;
    require(s.layers >= 1 && s.layers <= 1024, "layers must be 1 to 1024");
    for (int i = 0; i < s.layers; i++) {
      const std::string p = "layers." + std::to_string(i) + ".";
      Layer l;
      l.qkv = linear(d, p + "qkv", w.low_rank);
      l.o = linear(d, p + "o", w.low_rank);
      l.gate_up = linear(d, p + "gate_up", w.low_rank);
      l.down = linear(d, p + "down", w.low_rank);
      l.attn_norm = floats(d, p + "attn_norm", l.qkv.inputs(), keep_);
      l.mlp_norm = floats(d, p + "mlp_norm", l.qkv.inputs(), keep_);
      l.q_norm = floats(d, p + "q_norm", s.norm_dim, keep_);
      l.k_norm = floats(d, p + "k_norm", s.norm_dim, keep_);
      l.attn_post_norm = floats(d, p + "attn_post_norm", s.hidden, keep_);
      l.mlp_post_norm = floats(d, p + "mlp_post_norm", s.hidden, keep_);
      w.layers.push_back(l);
    }
    w.lm_head = linear(d, "lm_head", w.low_rank);
    w.final_norm = floats(d, "final_norm", w.lm_head.k, keep_);
    w.hidden_norm = floats(d, "hidden_norm", w.lm_head.k, keep_);
    const int64_t angles = (int64_t)s.max_position * (s.rotary_dim / 2);
    w.cos = floats(d, "cos", angles, keep_);
    w.sin = floats(d, "sin", angles, keep_);
    require(d.contains("embedding"), "embedding: missing");
    auto e = nb::cast<nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig>>(d["embedding"]);
    require((int64_t)e.shape(0) >= s.vocab && (int64_t)e.shape(1) == w.lm_head.k, "embedding: wrong shape");
    keep_.push_back(nb::borrow(d["embedding"]));
    w.embedding = e.data();
    return w;
  }

  std::vector<nb::object> keep_;
  std::unique_ptr<Model> model_;
};

// ---- one step ----------------------------------------------------------------------------------------------------------

struct Step {
  Batch batch;
  std::vector<SamplingArgs> args;
  std::vector<SamplingResult> results;
};

Batch read_batch(const Ints& tokens, const Ints& positions, const Ints& query_start, const Ints& table_start,
                 const Ints& table_block, const Ints& table_valid, const Ints& output_rows,
                 const std::optional<Ints>& embed_rows, const std::optional<Matrix>& embeds, const ModelSpec& spec) {
  Batch b;
  require(tokens.shape(0) == positions.shape(0), "positions must be as long as token_ids");
  require(query_start.shape(0) >= 2 && query_start.shape(0) == table_start.shape(0), "query_start and table_start must have S + 1 entries");
  require(table_block.shape(0) == table_valid.shape(0), "table_valid must be as long as table_block");
  b.rows = (int32_t)tokens.shape(0);
  b.sequences = (int32_t)query_start.shape(0) - 1;
  b.outputs = (int32_t)output_rows.shape(0);
  b.entries = (int64_t)table_block.shape(0);
  b.tokens = tokens.data();
  b.positions = positions.data();
  b.query_start = query_start.data();
  b.table_start = table_start.data();
  b.table_block = table_block.data();
  b.table_valid = table_valid.data();
  b.output_rows = output_rows.data();
  require(embed_rows.has_value() == embeds.has_value(), "embed_rows and embeds come together");
  if (embeds) {
    require(embeds->shape(0) == embed_rows->shape(0) && (int64_t)embeds->shape(1) == spec.hidden, "embeds must be [k, hidden]");
    b.embeds = (int32_t)embed_rows->shape(0);
    b.embed_rows = embed_rows->data();
    b.embed_values = embeds->data();
  }
  return b;
}

int64_t ragged(const Ints& start, int64_t rows, int64_t size, const char* what) {
  require((int64_t)start.shape(0) == rows + 1 && start.data()[0] == 0 && start.data()[rows] == size, what);
  for (int64_t i = 0; i < rows; i++) require(start.data()[i] <= start.data()[i + 1], what);
  return size;
}

// Row i may sample only what row mask_rows[i] of the masks allows; they may be filled until `before_sampling` returns.
void set_masks(std::vector<SamplingArgs>& args, const std::optional<Masks>& masks, const std::optional<Ints>& mask_rows,
               int32_t vocab) {
  require(masks.has_value() == mask_rows.has_value(), "allowed_masks and mask_rows come together");
  if (!masks) return;
  const size_t words = ((size_t)vocab + 31) / 32;
  require(masks->shape(1) == words, "allowed_masks must be [G, ceil(vocab / 32)]");
  require(mask_rows->shape(0) == args.size(), "mask_rows must have an entry for each output row");
  for (size_t i = 0; i < args.size(); i++) {
    const int32_t row = mask_rows->data()[i];
    require(row >= -1 && row < (int64_t)masks->shape(0), "mask row out of range");
    if (row >= 0) args[i].allowed_mask = masks->data() + (size_t)row * words;
  }
}

// Rows of kind kScores report on the tokens ids[start[i]] to ids[start[i + 1]]; returns float32 [ids], or None without any.
nb::object set_scores(std::vector<SamplingArgs>& args, const Kinds& kind, const std::optional<Ints>& start,
                      const std::optional<Ints>& ids, int32_t vocab) {
  require(start.has_value() == ids.has_value(), "score_start and score_ids come together");
  for (size_t i = 0; i < args.size(); i++) require(kind.data()[i] != kScores || start.has_value(), "score_ids are missing");
  if (!start) return nb::none();
  const int64_t total = ragged(*start, (int64_t)args.size(), (int64_t)ids->shape(0), "score_start is not a ragged index of score_ids");
  for (int64_t i = 0; i < total; i++) require(ids->data()[i] >= 0 && ids->data()[i] < vocab, "token to score out of range");
  float* scores;
  nb::object array = nb::cast(new_array<float>({(size_t)total}, &scores));
  for (size_t i = 0; i < args.size(); i++) {
    const int32_t first = start->data()[i], n = start->data()[i + 1] - first;
    require((kind.data()[i] == kScores) == (n > 0), "rows that score have tokens to score, and no others do");
    args[i].scored_tokens = ids->data() + first;
    args[i].scores = scores + first;
    args[i].num_scored = n;
  }
  return array;
}

nb::tuple forward(PyModel& self, KVCache& kv, Ints tokens, Ints positions, Ints query_start, Ints table_start, Ints table_block,
                  Ints table_valid, Ints output_rows, Kinds kind, Ints target, Ints num_logprobs, Floats temperature, Floats top_p,
                  Ints top_k, Floats min_p, Floats repetition, Floats presence, Floats frequency, Seeds seed, Ints index,
                  Ints bias_start, Ints bias_id, Floats bias_value, Ints history_start, Ints history, Ints history_prompt,
                  std::optional<Ints> embed_rows, std::optional<Matrix> embeds, std::optional<Masks> allowed_masks,
                  std::optional<Ints> mask_rows, nb::object before_sampling, std::optional<Ints> score_start,
                  std::optional<Ints> score_ids) {
  const ModelSpec& spec = self.model().spec();
  Batch b = read_batch(tokens, positions, query_start, table_start, table_block, table_valid, output_rows, embed_rows, embeds, spec);
  const size_t r = (size_t)b.outputs;
  for (size_t n : {kind.shape(0), target.shape(0), num_logprobs.shape(0), temperature.shape(0), top_p.shape(0), top_k.shape(0),
                   min_p.shape(0), repetition.shape(0), presence.shape(0), frequency.shape(0), seed.shape(0), index.shape(0),
                   history_prompt.shape(0)})
    require(n == r, "sampling arrays must have an entry for each output row");
  require(bias_id.shape(0) == bias_value.shape(0), "bias_value must be as long as bias_id");
  ragged(bias_start, b.outputs, (int64_t)bias_id.shape(0), "bias_start is not a ragged index of bias_id");
  ragged(history_start, b.outputs, (int64_t)history.shape(0), "history_start is not a ragged index of history");

  std::vector<SamplingArgs> args(r);
  std::vector<SamplingResult> results(r);
  int32_t most = 0;
  bool hidden = false;
  for (size_t i = 0; i < r; i++) {
    SamplingArgs& a = args[i];
    a.temperature = temperature.data()[i];
    a.top_p = top_p.data()[i];
    a.top_k = top_k.data()[i];
    a.min_p = min_p.data()[i];
    a.repetition_penalty = repetition.data()[i];
    a.presence_penalty = presence.data()[i];
    a.frequency_penalty = frequency.data()[i];
    a.seed = seed.data()[i];
    a.step = (uint64_t)index.data()[i];
    const int32_t h = history_start.data()[i], n = history_start.data()[i + 1] - h, p = history_prompt.data()[i];
    require(p >= 0 && p <= n, "history_prompt exceeds the history");
    a.prompt_tokens = history.data() + h;
    a.num_prompt = p;
    a.output_tokens = history.data() + h + p;
    a.num_output = n - p;
    a.bias_tokens = bias_id.data() + bias_start.data()[i];
    a.bias_values = bias_value.data() + bias_start.data()[i];
    a.num_bias = bias_start.data()[i + 1] - bias_start.data()[i];
    a.num_logprobs = std::clamp(num_logprobs.data()[i], 0, spec.vocab);
    a.need_logprob = num_logprobs.data()[i] >= 0;
    a.target = kind.data()[i] == kTarget ? target.data()[i] : -1;
    require(a.target < spec.vocab, "target token out of range");
    most = std::max(most, a.num_logprobs);
    hidden |= kind.data()[i] == kHidden;
  }
  set_masks(args, allowed_masks, mask_rows, spec.vocab);
  nb::object scores_array = set_scores(args, kind, score_start, score_ids, spec.vocab);
  int32_t *ids, *ranks, *top_ids = nullptr;
  float *logprobs, *top_logprobs = nullptr, *states = nullptr;
  nb::object ids_array = nb::cast(new_array<int32_t>({r}, &ids)), logprobs_array = nb::cast(new_array<float>({r}, &logprobs));
  nb::object ranks_array = nb::cast(new_array<int32_t>({r}, &ranks)), top_ids_array = nb::none(), top_logprobs_array = nb::none();
  nb::object hidden_array = nb::none();
  if (most) {
    top_ids_array = nb::cast(new_array<int32_t>({r, (size_t)most}, &top_ids));
    top_logprobs_array = nb::cast(new_array<float>({r, (size_t)most}, &top_logprobs));
    for (size_t i = 0; i < r; i++) {
      results[i].top_ids = top_ids + i * (size_t)most;
      results[i].top_logprobs = top_logprobs + i * (size_t)most;
    }
  }
  if (hidden) hidden_array = nb::cast(new_array<float>({r, (size_t)spec.hidden}, &states));
  b.kinds = kind.data();
  b.hidden = states;
  b.sampling = args.data();
  b.results = results.data();
  if (!before_sampling.is_none())
    b.before_outputs = [&before_sampling] {
      nb::gil_scoped_acquire acquire;
      before_sampling();
    };
  {
    nb::gil_scoped_release release;
    self.model().forward(kv, b);
  }
  for (size_t i = 0; i < r; i++) {
    ids[i] = results[i].token;
    logprobs[i] = results[i].logprob;
    ranks[i] = results[i].rank;
  }
  return nb::make_tuple(ids_array, logprobs_array, ranks_array, top_ids_array, top_logprobs_array, hidden_array, scores_array);
}

nb::object logits(PyModel& self, KVCache& kv, Ints tokens, Ints positions, Ints query_start, Ints table_start, Ints table_block,
                  Ints table_valid, Ints output_rows, std::optional<Ints> embed_rows, std::optional<Matrix> embeds) {
  const ModelSpec& spec = self.model().spec();
  Batch b = read_batch(tokens, positions, query_start, table_start, table_block, table_valid, output_rows, embed_rows, embeds, spec);
  float* out;
  auto array = new_array<float>({(size_t)b.outputs, (size_t)spec.vocab}, &out);
  b.logits = out;
  nb::gil_scoped_release release;
  self.model().forward(kv, b);
  nb::gil_scoped_acquire acquire;
  return nb::cast(array);
}

}  // namespace
}  // namespace vglm

NB_MODULE(_native, m) {
  using namespace vglm;
  m.def("available_isas", [] {
    const Kernels* all[8];
    const int n = available_kernels(all, 8);
    std::vector<std::string> names;
    for (int i = 0; i < n; i++) names.emplace_back(all[i]->name);
    return names;
  });

  nb::class_<KVCache>(m, "KVCache")
      .def("__init__",
           [](KVCache* self, int layers, int kv_heads, int head_dim, int block_size, int64_t blocks, const std::string& dtype) {
             require(dtype == "bf16" || dtype == "int8", "KV cache: dtype must be bf16 or int8");
             new (self) KVCache(KVLayout{layers, kv_heads, head_dim, block_size, dtype == "int8"}, blocks);
           },
           "num_layers"_a, "num_kv_heads"_a, "head_dim"_a, "block_size"_a, "num_blocks"_a, "dtype"_a)
      .def_prop_ro("block_bytes", &KVCache::block_bytes)
      .def_prop_ro("num_blocks", &KVCache::num_blocks)
      .def("copy_blocks",
           [](KVCache& self, Ints from, Ints to) {
             require(from.shape(0) == to.shape(0), "copy_blocks: as many destinations as sources");
             nb::gil_scoped_release release;
             self.copy(from.data(), to.data(), (int64_t)from.shape(0));
           },
           "src"_a, "dst"_a)
      .def("read_blocks",
           [](KVCache& self, Ints blocks, WritablePages out) {
             require(out.shape(0) == blocks.shape(0) && (int64_t)out.shape(1) == self.block_bytes(), "read_blocks: out must be [blocks, block_bytes]");
             nb::gil_scoped_release release;
             self.read(blocks.data(), (int64_t)blocks.shape(0), out.data());
           },
           "blocks"_a, "out"_a.noconvert())
      .def("write_blocks",
           [](KVCache& self, Ints blocks, Pages data) {
             require(data.shape(0) == blocks.shape(0) && (int64_t)data.shape(1) == self.block_bytes(), "write_blocks: data must be [blocks, block_bytes]");
             nb::gil_scoped_release release;
             self.write(blocks.data(), (int64_t)blocks.shape(0), data.data());
           },
           "blocks"_a, "data"_a)
      .def("release",
           [](KVCache& self, Ints blocks) {
             nb::gil_scoped_release release;
             self.release(blocks.data(), (int64_t)blocks.shape(0));
           },
           "blocks"_a)
      .def("resident_bytes", &KVCache::resident_bytes);

  nb::class_<PyModel>(m, "Model")
      .def(nb::init<nb::dict, nb::dict, int, std::string>(), "spec"_a, "weights"_a, "threads"_a, "isa"_a)
      .def_prop_ro("isa", [](PyModel& self) { return std::string(self.model().kernels().name); })
      .def("workspace_bytes", [](PyModel& self) { return self.model().workspace_bytes(); })
      .def("forward", &forward, "kv"_a, "token_ids"_a, "positions"_a, "query_start"_a, "table_start"_a, "table_block"_a,
           "table_valid"_a, "output_rows"_a, "kind"_a, "target"_a, "num_logprobs"_a, "temperature"_a, "top_p"_a, "top_k"_a,
           "min_p"_a, "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "seed"_a, "index"_a, "bias_start"_a,
           "bias_id"_a, "bias_value"_a, "history_start"_a, "history"_a, "history_prompt"_a, "embed_rows"_a.none() = nb::none(),
           "embeds"_a.none() = nb::none(), "allowed_masks"_a.noconvert().none() = nb::none(), "mask_rows"_a.none() = nb::none(),
           "before_sampling"_a.none() = nb::none(), "score_start"_a.none() = nb::none(), "score_ids"_a.none() = nb::none())
      .def("logits", &logits, "kv"_a, "token_ids"_a, "positions"_a, "query_start"_a, "table_start"_a, "table_block"_a,
           "table_valid"_a, "output_rows"_a, "embed_rows"_a.none() = nb::none(), "embeds"_a.none() = nb::none());

  bind_graph_walk(m);
  bind_kernels(m);
  bind_peak(m);
  bind_propagation(m);
  bind_sampler(m);
  bind_text_machine(m);
}
