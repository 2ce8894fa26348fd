import sys

from _drive import drive


def make():
    import openvino_genai as g

    s = g.SchedulerConfig()
    s.cache_size, s.max_num_batched_tokens, s.max_num_seqs, s.enable_prefix_caching = 4, 2048, 64, True
    pipe = g.ContinuousBatchingPipeline(sys.argv[2], s, "CPU", {})
    tok = pipe.get_tokenizer()

    def generate(prompts, n, graphs=None):
        c = g.GenerationConfig()
        c.max_new_tokens, c.ignore_eos, c.do_sample, c.apply_chat_template = n, True, False, False
        pipe.generate(prompts, [c] * len(prompts))
        return sum(tok.encode(p).input_ids.shape[1] for p in prompts), n * len(prompts)

    return generate


if __name__ == "__main__":
    drive("openvino", make, "int8 weights")
