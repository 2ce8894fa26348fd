"""Every benchmark ends with figures that can be true, on a screen and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vglm import _native
from vglm.bench import accuracy, kernels, latency, memory, throughput
from vglm.bench.report import Report, Table, check_writable
from vglm.errors import ConfigError

TEXT = "The heart is a muscular organ that pumps blood through the vessels of the circulatory system. " * 40


def by(report: Report, table: int, **keys: object) -> dict[str, object]:
    """The row of a table that has these values."""
    rows = [r for r in report.tables[table].rows if all(r[k] == v for k, v in keys.items())]
    assert len(rows) == 1, rows
    return rows[0]


def test_throughput(model: str) -> None:
    work = throughput.Throughput(num_prompts=3, input_len=32, output_len=5)
    report = throughput.run(model, work, {"threads": 1})
    prefill, decode, both = (by(report, 0, phase=p) for p in ("prefill", "decode", "both"))
    assert (prefill["tokens"], prefill["steps"]) == (96, 1)
    assert (decode["tokens"], decode["steps"]) == (12, 4)  # the first tokens come from the prefill
    assert both["tokens"] == 96 + 15
    assert all(0 <= row["outside_model"] < 1 for row in (prefill, decode, both))  # type: ignore[operator]


def test_throughput_of_a_text(model: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text(TEXT)
    work = throughput.Throughput(num_prompts=2, input_len=16, output_len=2, text=file)
    assert throughput.run(model, work, {}).settings["prompts"] == str(file)
    with pytest.raises(ConfigError, match="need 200000"):
        throughput.run(model, throughput.Throughput(num_prompts=2, input_len=100000, text=file), {})


def test_latency(model: str) -> None:
    report = latency.run(
        model, latency.Latency(input_len=16, output_len=4, repeats=2, batch=3), {"threads": 1}
    )
    assert by(report, 0, batch=3, figure="TTFT")["count"] == 6
    assert by(report, 0, batch=1, figure="ITL")["count"] == 6
    for row in report.tables[0].rows:
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
    assert [row["batch"] for row in report.tables[1].rows] == [1, 64]
    assert all(0 < row["mean"] < 50 for row in report.tables[1].rows)


def test_memory(model: str) -> None:
    work = memory.Memory(requests=40, measured=4, max_model_len=4096, kv_tokens=32768, scale=16)
    report = memory.run(model, work, {"threads": 1})
    static = by(report, 0, strategy="static reservation")
    assert static["concurrent"] <= 8  # type: ignore[operator]
    for row in report.tables[0].rows[1:]:
        assert row["used_slots_valid"] >= (0.96 if row["block_size"] < 64 else 0.93)
        assert row["used_slots_valid"] > 3 * static["used_slots_valid"]
        assert row["concurrent"] > static["concurrent"]
        assert row["steps"] < static["steps"]
    assert all(row["sequences_per_second"] > 0 for row in report.tables[1].rows)
    assert all(row["nanoseconds"] > 0 for row in report.tables[2].rows)
    pool, malloc = report.tables[3].rows
    assert (pool["usable"], pool["after_compaction"]) == (1.0, 0.0)
    assert 0 < malloc["external"] < 1
    assert malloc["usable"] < 1


def test_kernels(model: str) -> None:
    isa = _native.available_isas()[0]
    report = kernels.run(model, kernels.Kernels(isas=(isa,), rows=(1, 8), threads=1, megabytes=1))
    peaks = by(report, 0, isa=isa)
    assert peaks["int8"] > 1  # type: ignore[operator]
    assert peaks["gb_per_second"] > 0.1  # type: ignore[operator]
    for table in report.tables[1:4]:
        assert {(row["m"], row["k"]) for row in table.rows} == {(1, 576), (1, 1536), (8, 576), (8, 1536)}
        assert all(row["gops"] > 0 for row in table.rows)
    assert {row["kv"] for row in report.tables[4].rows} == {"bf16", "int8"}


def test_accuracy(model: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text(TEXT)
    work = accuracy.Accuracy(text=file, tokens=128, context=64, pairs=("bf16+bf16", "int8+int8"), threads=1)
    report = accuracy.run(model, work)
    exact = by(report, 0, dtype="bf16+bf16")
    assert exact["tokens"] == 126
    assert 0 < exact["mean_kl"] < 0.001  # type: ignore[operator]
    assert exact["top1_agreement"] > 0.95  # type: ignore[operator]
    rounded = by(report, 0, dtype="int8+int8")
    assert exact["mean_kl"] < rounded["mean_kl"] < 0.1  # type: ignore[operator]
    with pytest.raises(ConfigError, match="no pair of dtypes"):
        accuracy.run(model, accuracy.Accuracy(text=file, pairs=("fp8+bf16",)))
    with pytest.raises(ConfigError, match="are wanted"):
        accuracy.run(model, accuracy.Accuracy(text=file, tokens=10**6))


def test_a_report_is_readable_and_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = [("what", "what", ""), ("share", "share", ".1%"), ("count", "count", ",d")]
    rows = [{"what": "a", "share": 0.5, "count": 1234}, {"what": "b", "share": None}]
    report = Report("trial", {"model": "m", "threads": None}, [Table("first", columns, rows, ["a note"])])
    file = tmp_path / "report.json"
    report.publish(file)
    text = capsys.readouterr().out
    assert "50.0%" in text
    assert "1,234" in text
    assert "a note" in text
    stored = json.loads(file.read_text())
    assert stored["tables"] == [{"title": "first", "rows": rows, "notes": ["a note"]}]
    assert stored["machine"]["instruction_sets"][-1] == "portable"
    report.publish(Path("-"))
    assert json.loads(capsys.readouterr().out) == stored


def test_an_unwritable_file_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(tmp_path / "missing" / "x.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(tmp_path)
    check_writable(tmp_path / "new.json")
    check_writable(Path("-"))
    check_writable(None)
