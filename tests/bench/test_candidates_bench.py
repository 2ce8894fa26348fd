"""`vglm bench candidates`: the figures add up, and both ways give the same scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.helpers import tiny_model
from vglm.bench.candidates import Candidates, run
from vglm.errors import ConfigError


def test_both_ways_give_the_same_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / "home"))
    work = Candidates(sizes=(5, 60), prompt_len=40, alone=8, repeats=2, synthetic=True)
    report = run(str(tiny_model(tmp_path)), work, {"max_model_len": 512})
    small, large = report.tables[0].rows
    assert [small["candidates"], large["candidates"]] == [5, 60]
    for row in (small, large):
        assert row["difference"] == 0.0
        assert 0 < row["rows"] < row["tokens"] + 40
        assert row["per_second"] == pytest.approx(row["candidates"] / row["seconds"])
        assert 0 < row["outside_model"] < 1
        assert row["alone"] > 0
        assert row["speedup"] == pytest.approx(row["per_second"] / row["alone"])
    report.show()
    assert run(str(tiny_model(tmp_path)), Candidates(sizes=(3,), alone=0, repeats=1, synthetic=True), {})


def test_too_many_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vglm.bench.candidates._diseases", lambda: [" a", " b"])
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="there are 2 names, fewer than 3"):
        run(str(tiny_model(tmp_path)), Candidates(sizes=(3,)), {})
