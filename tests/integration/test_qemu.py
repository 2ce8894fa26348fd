"""On an emulated older processor, which traps every instruction it does not know: nothing newer is executed.

Needs qemu-x86_64 (Debian's qemu-user); skipped where it is not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QEMU = shutil.which("qemu-x86_64")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed")

ANSWER = """
import sys
from tests.integration.helpers import exact
from vglm import LLM, SamplingParams, _native
llm = LLM(sys.argv[1], dtype=sys.argv[2], max_model_len=512, threads=2)
params = SamplingParams(max_tokens=6, temperature=0.8, seed=1, logprobs=2)
outputs = llm.generate([[5, 6, 7] * 100, [9], [8] * 33], params, use_tqdm=False)
print(_native.available_isas()[0], [exact(output)[1] for output in outputs])
"""


def run(arguments: list[str], cpu: str | None, **environment: str) -> str:
    """The output of Python with these arguments, on this processor or on an emulated one."""
    command = [sys.executable, *arguments]
    if cpu is not None:
        assert QEMU is not None
        command = [QEMU, "-cpu", cpu, *command]
    # The emulated CPUID is not one that OpenBLAS's detection knows, so numpy is told.
    variables = os.environ | {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("cpu", "isa"), [("Haswell", "avx2"), ("IvyBridge", "portable"), ("Nehalem", "portable")]
)
@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_answers_on_an_older_processor(tiny: Path, home: Path, cpu: str, isa: str, dtype: str) -> None:
    """Its best instruction set is chosen, and gives the bits that the same set gives here."""
    arguments = ["-c", ANSWER, str(tiny), dtype]
    _, expected = run(arguments, None, VGLM_ISA=isa).split(" ", 1)
    chosen, answer = run(arguments, cpu).split(" ", 1)
    assert chosen == isa
    assert answer == expected


def test_kernels_on_haswell() -> None:
    """Every kernel that an AVX2 processor may choose, against its naive twin."""
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/native/test_kernels.py"]
    assert "passed" in run([*arguments, "-k", "avx2 or portable or saturate", "-rN", "-v"], "Haswell")
