"""`vglm export`: a directory that opens by itself, and what cannot be exported."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama"


def test_export_and_use(vglm: Run, tmp_path: Path) -> None:
    environment = {"VGLM_HOME": str(tmp_path / "home")}
    out = tmp_path / "exported"
    done = vglm("export", str(FIXTURE), "--dtype", "int4", "--out", str(out), environment=environment)
    assert (done.returncode, done.stdout.strip()) == (0, str(out)), done.stderr
    about = json.loads(vglm("inspect", str(out), "--json", environment=environment).stdout)
    assert about["card"] == {"name": "llama", "version": "1", "files": []}
    assert list(about["weight_bytes"]) == ["int4"]
    assert "llama, version 1" in vglm("inspect", str(out), environment=environment).stdout
    options = ("--max-tokens", "4", "--ignore-eos")
    answers = [
        vglm("generate", str(model), "one two", *options, *dtype, environment=environment)
        for model, dtype in ((out, ()), (FIXTURE, ("--dtype", "int4")))
    ]
    assert answers[0].stdout == answers[1].stdout != ""


def test_what_cannot_be_exported(vglm: Run, tmp_path: Path) -> None:
    done = vglm("export", str(FIXTURE), "--out", str(tmp_path))  # empty: it serves
    assert done.returncode == 0
    for arguments, message in (
        (["export", str(FIXTURE), "--out", str(tmp_path)], "is there already"),
        (
            ["export", str(FIXTURE), "--out", str(tmp_path / "x"), "--dtype", "int3"],
            "dtype 'int3': choose one",
        ),
        (["export", "no-such-model", "--out", str(tmp_path / "x")], "'no-such-model' is no file"),
    ):
        done = vglm(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
