"""generate and chat with the real model."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Run

PROMPT = "The capital of France is"
FAST = ["--threads", "1", "--max-model-len", "1024"]


def test_one_prompt_is_streamed_to_stdout(vglm: Run, model: str) -> None:
    done = vglm("generate", model, PROMPT, "--max-tokens", "4", *FAST)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stderr == ""


def test_the_prompt_comes_from_stdin_or_a_file(vglm: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT)
    arguments = ["generate", model, "--max-tokens", "4", *FAST]
    outputs = {
        vglm(*arguments, PROMPT).stdout,
        vglm(*arguments, stdin=PROMPT).stdout,
        vglm(*arguments, "-", stdin=PROMPT).stdout,
        vglm(*arguments, "--file", str(file)).stdout,
    }
    assert len(outputs) == 1
    assert "Paris" in outputs.pop()


def test_json_has_every_completion_of_every_line(vglm: Run, model: str) -> None:
    lines = f"{PROMPT}\n\nTwo and two is é\n"
    done = vglm("generate", model, "--lines", "--json", "--max-tokens", "3", "--n", "2", *FAST, stdin=lines)
    document = json.loads(done.stdout)
    assert document["dtype"] == "int8"
    assert [result["prompt"] for result in document["results"]] == [PROMPT, "Two and two is é"]
    for result in document["results"]:
        assert len(result["outputs"]) == 2
        for output in result["outputs"]:
            assert output["finish_reason"] == "length"
            assert len(output["token_ids"]) == 3
        assert 0 < result["seconds_to_first_token"] <= result["seconds"]


def test_options_reach_the_engine(vglm: Run, model: str) -> None:
    arguments = ["generate", model, PROMPT, "--json", "--dtype", "bf16", "--kv-cache-dtype", "int8", *FAST]
    document = json.loads(vglm(*arguments, "--stop", "Paris", "--max-tokens", "20").stdout)
    assert (document["dtype"], document["kv_cache_dtype"]) == ("bf16", "int8")
    output = document["results"][0]["outputs"][0]
    assert (output["finish_reason"], output["stop_reason"]) == ("stop", "Paris")
    assert "Paris" not in output["text"]


def test_a_seed_makes_sampling_repeatable(vglm: Run, model: str) -> None:
    arguments = ["generate", model, PROMPT, "--temperature", "1", "--seed", "7", "--max-tokens", "8", *FAST]
    assert vglm(*arguments).stdout == vglm(*arguments).stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-model-len", "4"], "4"),
        (["--dtype", "fp7"], "fp7"),
        (["--kv-cache-memory", "lots"], "kv_cache_memory"),
        (["--threads", "0"], "threads"),
        (["--block-size", "17"], "block_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_served(vglm: Run, model: str, options: list[str], says: str) -> None:
    done = vglm("generate", model, PROMPT, *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says in done.stderr


def test_ctrl_c_ends_generation_with_130(model: str) -> None:
    command = [*COMMAND, "generate", model, PROMPT, "--ignore-eos", "--max-tokens", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in errors
        assert len(rest) < 20_000  # it stopped, rather than ran to its end


def test_ctrl_c_in_a_batch_ends_with_130(model: str) -> None:
    prompts = [f"Number {i}:" for i in range(8)]
    command = [*COMMAND, "generate", model, *prompts, "--ignore-eos", "--max-tokens", "2000", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out == b""
        assert b"Traceback" not in errors


def test_a_reader_that_leaves_ends_generation_quietly(model: str) -> None:
    command = [*COMMAND, "generate", model, PROMPT, "--ignore-eos", "--max-tokens", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(8)
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_chat_answers_each_line_of_a_pipe_and_remembers(vglm: Run, model: str) -> None:
    def answers(messages: str) -> list[str]:
        done = vglm("chat", model, "--temperature", "0", "--max-tokens", "12", *FAST, stdin=messages)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    name = "My name is Ada. Say hello to me.\n"
    question = "What is my name?\n"
    remembered = answers(name + question + "/clear\n" + question + "/exit\nnever read\n")
    assert remembered[:1] == answers(name)
    assert remembered[-1:] == answers(question)
    assert remembered[1] != remembered[-1]
    assert len(remembered) == 3


def test_chat_refuses_a_conversation_that_is_too_long(vglm: Run, model: str) -> None:
    done = vglm("chat", model, "--max-model-len", "64", "--threads", "1", stdin="word " * 200)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until `text` is there, and forget what is before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(model: str) -> None:
    terminal = Terminal("chat", model, "--temperature", "0", "--max-tokens", "800", *FAST)
    terminal.wait_for("> ")
    terminal.type("Write a very long story about a fox.\n")
    terminal.wait_for("fox")  # the echo
    terminal.wait_for("fox")  # the answer has begun
    terminal.interrupt()
    terminal.wait_for("[stopped]")
    terminal.wait_for("> ")
    terminal.type("/help\n")
    terminal.wait_for("/clear forgets")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


def test_ctrl_c_at_the_prompt_leaves(model: str) -> None:
    terminal = Terminal("chat", model, *FAST)
    terminal.wait_for("> ")
    terminal.interrupt()
    assert terminal.process.wait(30) == 130
