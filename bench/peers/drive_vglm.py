from _drive import drive


def make():
    from vglm import LLM, SamplingParams

    options = {"model": "smollm2-135m-instruct", "max_num_seqs": 64, "max_model_len": 4096}
    try:
        llm = LLM(**options, graph_mode="spans")
    except TypeError:  # before graphs are an input
        llm = LLM(**options)

    def generate(prompts, n, graphs=None):
        extra = {}
        if graphs is not None:
            from vglm import Graph

            extra["graph"] = [Graph.from_dict(g) for g in graphs]
        out = llm.generate(
            prompts, SamplingParams(max_tokens=n, temperature=0, ignore_eos=True), use_tqdm=False, **extra
        )
        return sum(len(o.prompt_token_ids) for o in out), sum(len(o.outputs[0].token_ids) for o in out)

    return generate


if __name__ == "__main__":
    drive("vglm", make)
