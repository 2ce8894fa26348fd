"""Coverage-guided fuzzing of everything that reads a model from disk: only VGLMError may come out, and soon.

    pip install atheris gguf && python tests/fuzz/fuzz_loaders.py --minutes 10

The first byte of an input chooses the loader: a GGUF file, a safetensors file, config.json, tokenizer.json, a
chat template. Seeds are made from the test fixtures; a crash is kept as crash-* in the working directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
FIXTURES = ROOT / "tests" / "fixtures"

with atheris.instrument_imports(include=["vglm"]):
    from vglm.errors import VGLMError
    from vglm.model.chat_template import ChatTemplate
    from vglm.model.checkpoint import Checkpoint, open_checkpoint
    from vglm.model.describe import describe_model
    from vglm.model.gguf import GGUFCheckpoint
    from vglm.model.gguf_header import GGUFHeader

GGUF, SAFETENSORS, CONFIG, TOKENIZER, TEMPLATE = range(5)
FILES = {SAFETENSORS: "model.safetensors", CONFIG: "config.json", TOKENIZER: "tokenizer.json"}
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
WORK = Path(tempfile.mkdtemp(prefix="vglm-fuzz-"))


def use(checkpoint: Checkpoint) -> None:
    """Everything that starting an engine would touch."""
    describe_model(checkpoint)
    for name in checkpoint.names():
        checkpoint.tensor(name)
        checkpoint.blocks(name)
    tokenizer = checkpoint.tokenizer()
    tokenizer.decode(tokenizer.encode("Ataxia 12 \u00b5m <|im_end|>", allow_special_tokens=False))
    if checkpoint.chat_template is not None:
        ChatTemplate(checkpoint.chat_template).render(MESSAGES)


def one_input(data: bytes) -> None:
    kind, content = (data[0] if data else 0) % 5, data[1:]
    with contextlib.suppress(VGLMError):
        if kind == GGUF:
            use(GGUFCheckpoint(Path("fuzz.gguf"), content, GGUFHeader(content, "fuzz.gguf"), 0))
        elif kind == TEMPLATE:
            ChatTemplate(content.decode("utf-8", "replace")).render(MESSAGES)
        else:
            model = WORK / FILES[kind]
            (model / FILES[kind]).write_bytes(content)
            use(open_checkpoint(model))


def make_work_and_seeds(corpus: Path) -> None:
    """One directory per kind, of which inputs replace one file; seeds are those files."""
    from tests.gguf_files import convert_fixture, write_random_llama

    corpus.mkdir(parents=True, exist_ok=True)
    for kind, name in FILES.items():
        shutil.copytree(FIXTURES / "llama", WORK / name)
        (corpus / f"seed-{name}").write_bytes(bytes([kind]) + (FIXTURES / "llama" / name).read_bytes())
    for fixture in ("glm4", "qwen2-yarn", "llama-llama3", "granite"):
        config = (FIXTURES / fixture / "config.json").read_bytes()
        (corpus / f"seed-config-{fixture}").write_bytes(bytes([CONFIG]) + config)
    for quant in ("Q4_0", "Q4_1", "Q8_0", "BF16"):
        path = write_random_llama(WORK / "seed.gguf", quant, hidden=32)
        (corpus / f"seed-{quant}").write_bytes(bytes([GGUF]) + path.read_bytes())
    path = convert_fixture(FIXTURES / "qwen2-yarn", WORK / "seed.gguf", "F16")
    (corpus / "seed-yarn").write_bytes(bytes([GGUF]) + path.read_bytes())
    template = json.loads((FIXTURES / "llama" / "tokenizer_config.json").read_text())["chat_template"]
    (corpus / "seed-template").write_bytes(bytes([TEMPLATE]) + template.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--corpus", type=Path, default=WORK / "corpus", help="kept between runs when given")
    options, rest = parser.parse_known_args()
    make_work_and_seeds(options.corpus)
    limits = [
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-max_len=262144",
        f"-max_total_time={int(options.minutes * 60)}",
    ]
    atheris.Setup([sys.argv[0], *limits, *rest, str(options.corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
