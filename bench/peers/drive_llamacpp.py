import ctypes
import os
import sys

from _drive import drive


def make():
    import llama_cpp as L
    import numpy as np

    @L.llama_log_callback
    def quiet(level, text, data):
        pass

    make.keep = quiet
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    mp = L.llama_model_default_params()
    mp.use_extra_bufts = os.environ.get("AMX", "0") == "1"
    model = L.llama_model_load_from_file(sys.argv[2].encode(), mp)
    cp = L.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max, cp.n_outputs_max = 64 * 1024, 2048, 512, 64, 2048
    cp.n_threads = cp.n_threads_batch = os.cpu_count()
    cp.kv_unified = (
        False  # one KV stream a sequence: a unified cache makes every token scan every sequence's cells
    )
    ctx = L.llama_init_from_model(model, cp)
    vocab = L.llama_model_get_vocab(model)
    n_vocab = L.llama_vocab_n_tokens(vocab)

    def tokenize(s):
        b = s.encode()
        a = (L.llama_token * 16384)()
        return list(a[: L.llama_tokenize(vocab, b, len(b), a, 16384, True, True)])

    def generate(prompts, n, graphs=None):
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
        toks = [tokenize(p) for p in prompts]
        last, pos = [0] * len(toks), [len(t) for t in toks]
        batch = L.llama_batch_init(2048, 0, 1)

        def flush(items):
            batch.n_tokens = len(items)
            for i, (t, s, p, out) in enumerate(items):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, p, 1, out
                batch.seq_id[i][0] = s
            if L.llama_decode(ctx, batch):
                raise RuntimeError("llama_decode failed")
            for i, (t, s, p, out) in enumerate(items):
                if out:
                    last[s] = int(
                        np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, i), shape=(n_vocab,)).argmax()
                    )

        items = [(t, s, p, p == len(ts) - 1) for s, ts in enumerate(toks) for p, t in enumerate(ts)]
        for i in range(0, len(items), 2048):
            flush(items[i : i + 2048])
        for k in range(n - 1):
            flush([(last[s], s, pos[s] + k, True) for s in range(len(toks))])
        L.llama_batch_free(batch)
        return len(items), n * len(prompts)

    return generate


if __name__ == "__main__":
    drive(
        "llamacpp", make, "Q8_0, " + ("with" if os.environ.get("AMX") == "1" else "without") + " AMX buffers"
    )
