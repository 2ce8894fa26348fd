"""Help, version and wrong arguments: none of them loads a model."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Run
from vglm import __version__
from vglm.__main__ import main

COMMANDS = ["pull", "generate", "chat", "inspect", "bench", "demo"]
BENCHMARKS = ["throughput", "latency", "memory", "kernels", "accuracy", "serve", "stream"]


def test_version(vglm: Run) -> None:
    done = vglm("--version")
    assert (done.returncode, done.stdout) == (0, f"vglm {__version__}\n")


@pytest.mark.parametrize(
    "command",
    [*([c] for c in COMMANDS if c != "bench"), *(["bench", b] for b in BENCHMARKS)],
    ids=" ".join,
)
def test_every_command_has_help_with_examples(vglm: Run, command: list[str]) -> None:
    done = vglm(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert re.search(r"[Ee]xamples?", done.stdout)
    assert f"vglm {' '.join(command)}" in done.stdout


def test_help_names_every_command(vglm: Run) -> None:
    done = vglm("--help")
    assert done.returncode == 0
    assert all(re.search(rf"\b{command}\b", done.stdout) for command in COMMANDS)
    bench = vglm("bench", "--help").stdout
    assert all(re.search(rf"\b{name}\b", bench) for name in BENCHMARKS)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time, runpy; begin = time.process_time(); sys.argv = ['vglm', '--help']\n"
        "try: runpy.run_module('vglm', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'gguf', 'vglm._native', 'vglm.llm'} & set(sys.modules)\n"
        "print(time.process_time() - begin, sorted(heavy), file=sys.stderr)"
    )
    # processor time, so that a busy machine does not fail this; the limit that users care about is 0.3 s
    best = min(_seconds_and_modules(code) for _ in range(3))
    assert best[1] == "[]"
    assert best[0] < 0.3


def test_ctrl_c_while_it_imports_is_quiet() -> None:
    code = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'vglm.cli_bench': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted()); sys.argv = ['vglm', 'demo']\n"
        "runpy.run_module('vglm', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_command_begins_where_ctrl_c_is_quiet() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"vglm": "vglm.__main__:main"}
    assert main.__module__ == "vglm.__main__"
    code = "import sys; import vglm.__main__; print(sorted(m for m in sys.modules if m.startswith('vglm')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['vglm', 'vglm.__main__']\n"


def _seconds_and_modules(code: str) -> tuple[float, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = done.stderr.strip().split(" ", 1)
    return float(seconds), modules


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["generate"],
        ["generate", "model", "--max-tokens", "many"],
        ["inspect", "model", "--tokens", "0"],
        ["bench", "no-such-benchmark"],
        ["bench", "throughput", "--num-prompts", "0"],
        ["pull"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused_without_a_traceback(vglm: Run, arguments: list[str]) -> None:
    done = vglm(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "no-such-model", "x"], "no-such-model"),
        (["inspect", "smolm2-135m-instruct"], "did you mean"),
        (["chat", "/nonexistent/model.gguf"], "/nonexistent/model.gguf"),
        (["pull", "no-such-model"], "known names"),
        (["generate", "m", "x", "--temperature", "-1"], "temperature"),
        (["generate", "m", "x", "--top-p", "2"], "top_p"),
        (["generate", "m", "--file", "/nonexistent/prompt"], "/nonexistent/prompt: No such file"),
        (["generate", "m"], "the prompt is empty"),
        (["generate", "hpo", "x"], "data set"),
        (["bench", "throughput", "--json", "/nonexistent/x.json"], "cannot be written"),
        (["bench", "kernels", "--isa", "mmx"], "mmx"),
        (["bench", "memory", "--max-model-len", "1000"], "multiple of 256"),
        (["bench", "memory", "--trace", "/nonexistent/trace.csv"], "/nonexistent/trace.csv"),
        (["bench", "latency", "--dtype", "fp7"], "fp7"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(vglm: Run, arguments: list[str], says: str) -> None:
    done = vglm(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_errors_are_red_on_a_terminal_only(vglm: Run) -> None:
    assert "\x1b" not in vglm("generate", "no-such-model", "x").stderr


def test_a_closed_pipe_is_quiet() -> None:
    with subprocess.Popen(
        [*COMMAND, "pull", "--list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        begin = time.monotonic()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
        assert time.monotonic() - begin < 30
