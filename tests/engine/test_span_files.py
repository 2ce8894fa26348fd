"""Files of spans on disk: whole or not there, whatever has happened to them; bounded in size; one writer."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from span_writer import BLOCK_BYTES, IDENTITY, LIMIT, span

from vglm.engine.span_files import NUM_SEGMENTS, SpanFiles
from vglm.engine.span_segments import SavedSpan
from vglm.errors import ConfigError

WRITER = Path(__file__).with_name("span_writer.py")


def opened(directory: Path, limit: int = LIMIT, **identity: str) -> SpanFiles:
    return SpanFiles(directory, IDENTITY | identity, BLOCK_BYTES, limit)


def found(files: SpanFiles, number: int) -> bool:
    """Whether a span is on disk and sound; what is found must be exactly what was written."""
    wanted = span(number)
    place = files.find(wanted.key)
    if place is None:
        return False
    pages = files.view(place)
    record = place.record
    if pages is None or xxhash.xxh3_128_digest(pages) != record.checksum:
        return False
    assert (record.key, record.first_position, record.parents, record.valid) == wanted[:4]
    assert (pages == wanted.pages).all()
    return True


def write(directory: Path, numbers: range) -> None:
    files = opened(directory)
    assert all(files.append(span(number)) for number in numbers)
    files.close()


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_spans_are_found_again(tmp_path: Path) -> None:
    write(tmp_path, range(20))
    write(tmp_path, range(20, 30))
    files = opened(tmp_path)
    assert files.num_spans == 30
    assert all(found(files, number) for number in range(30))
    assert files.find(span(30).key) is None
    assert len(list(tmp_path.glob("*/*.index"))) == 1, "a segment is filled before the next one is begun"
    assert files.num_bytes == disk_bytes(tmp_path)


def test_a_view_outlives_its_segment(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    files = opened(tmp_path)
    place = files.find(span(1).key)
    assert place is not None
    pages = files.view(place)
    assert pages is not None
    files._drop(place.segment)
    assert (pages == span(1).pages).all()
    assert files.find(span(1).key) is None
    assert files.view(place) is None
    assert not list(tmp_path.glob("*/*.pages"))


@pytest.mark.parametrize("change", ["model", "kv_cache_dtype", "isa", "block_size", "native"])
def test_another_identity_has_other_files(tmp_path: Path, change: str) -> None:
    write(tmp_path, range(5))
    files = opened(tmp_path, **{change: "other"})
    assert files.num_spans == 0
    assert files.append(span(7))
    files.close()
    assert opened(tmp_path).num_spans == 5


def test_files_moved_to_another_identity_are_never_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, range(5))
    other = opened(tmp_path, model="other")
    other.close()
    for path in next(tmp_path.glob("*/*.index")).parent.glob("0*"):
        shutil.copy(path, other.folder)
    files = opened(tmp_path, model="other")
    assert files.num_spans == 0
    assert "belongs to something else" in caplog.text
    assert not list(files.folder.glob("*.pages"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with spans 0 to 19."""
    directory = tmp_path_factory.mktemp("whole")
    write(directory, range(20))
    return directory


def damaged_copy(whole: Path, suffix: str) -> tuple[Path, Path]:
    """A copy of the directory and its file with this suffix."""
    directory = whole.with_name("damaged")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(whole, directory)
    return directory, next(directory.glob(f"*/*{suffix}"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    suffix=st.sampled_from([".pages", ".index"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_is_found_out(whole: Path, suffix: str, where: float, bit: int) -> None:
    directory, file = damaged_copy(whole, suffix)
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    file.write_bytes(data)
    files = opened(directory)
    left = [number for number in range(20) if found(files, number)]
    if suffix == ".pages":
        assert len(left) >= 19, "a bit of one span's pages, or of a gap between them"
    else:
        assert left == list(range(len(left))), "an index counts up to its first damaged record"
        assert len(left) < 20
    assert files.append(span(50))
    assert found(files, 50)
    files.close()
    again = opened(directory)
    assert found(again, 50)
    assert [number for number in range(20) if found(again, number)] == left
    again.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(suffix=st.sampled_from([".pages", ".index"]), where=st.floats(0, 1))
def test_a_file_that_is_cut_short_keeps_what_is_whole(whole: Path, suffix: str, where: float) -> None:
    directory, file = damaged_copy(whole, suffix)
    size = int(where * file.stat().st_size)
    with open(file, "r+b") as cut:
        cut.truncate(size)
    files = opened(directory)
    left = [number for number in range(20) if found(files, number)]
    assert left == list(range(len(left)))
    assert all(files.append(span(number)) for number in range(20, 40))
    files.close()
    again = opened(directory)
    assert [number for number in range(40) if found(again, number)] == left + list(range(20, 40))
    assert again.num_spans == len(left) + 20, "nothing is listed that is not whole"
    again.close()


def test_a_file_that_is_cut_short_while_it_is_mapped(tmp_path: Path) -> None:
    write(tmp_path, range(20))
    files = opened(tmp_path)
    assert found(files, 0)  # mapped now
    with open(next(tmp_path.glob("*/*.pages")), "r+b") as pages:
        pages.truncate(BLOCK_BYTES * 3)
    assert found(files, 0)
    assert not found(files, 19)


@pytest.mark.parametrize("content", [b"", b"vglm spans\n", b"\xff" * 1000])
def test_another_file_in_an_index_s_place(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, range(5))
    next(tmp_path.glob("*/*.index")).write_bytes(content)
    files = opened(tmp_path)
    assert files.num_spans == 0
    assert files.append(span(1))
    assert found(files, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.booleans()), max_size=150))
def test_the_directory_never_grows_over_its_limit(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, bool]]
) -> None:
    """Three identities in turn, each of which leaves its spans behind."""
    directory = tmp_path_factory.mktemp("bounded")
    limit = NUM_SEGMENTS * 30_000
    current, files = "", None
    for model, number, reopen in history:
        if files is None or reopen or model != current:
            if files is not None:
                files.close()
            current, files = model, opened(directory, limit, model=model)
        assert files.append(span(number))
        assert found(files, number), "what was written last is there"
        assert disk_bytes(directory) <= limit
    if files is not None:
        files.close()


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    files = opened(tmp_path, NUM_SEGMENTS * 30_000)
    assert files.append(span(0))
    number = 0
    while files.num_spans > number:  # until the first segment has been dropped
        number += 1
        assert files.append(span(number))
        assert found(files, 0), "it is used all the time"
    missing = [n for n in range(number + 1) if not found(files, n)]
    assert missing
    assert 0 < missing[0] <= missing[-1] < number // 2, "the oldest of the others have gone"


def test_what_was_used_last_before_a_restart_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vglm.engine.span_segments.TOUCH", 0.0)
    limit = NUM_SEGMENTS * 30_000
    files = opened(tmp_path, limit)
    number = 0
    while len(files.segments) < NUM_SEGMENTS:
        assert files.append(span(number))
        number += 1
    time.sleep(0.05)
    assert found(files, 0)
    files.close()
    files = opened(tmp_path, limit)
    while found_all := files.num_spans == number:
        assert files.append(span(number))
        number += 1
    assert not found_all
    assert found(files, 0)


def test_spans_that_a_process_works_with_are_left_alone(tmp_path: Path) -> None:
    limit = NUM_SEGMENTS * 30_000
    old = opened(tmp_path, limit, model="old")
    number = 0
    while disk_bytes(tmp_path) + old.segment_bytes <= limit:
        assert old.append(span(number))
        number += 1
    new = opened(tmp_path, limit, model="new")
    assert not new.append(span(0)), "no room"
    assert old.num_spans == number
    old.close()
    assert new.append(span(0))
    new.close()
    assert 0 < opened(tmp_path, limit, model="old").num_spans < number
    assert disk_bytes(tmp_path) <= limit


def test_finding_while_another_thread_writes_and_drops(tmp_path: Path) -> None:
    files = opened(tmp_path, NUM_SEGMENTS * 30_000)
    last = [0]

    def write_all() -> None:
        for number in range(600):
            assert files.append(span(number))
            last[0] = number

    thread = Thread(target=write_all)
    thread.start()
    sound = lost = 0
    while thread.is_alive() or not lost:
        number = max(0, last[0] - (sound + lost) % 40)
        place = files.find(span(number).key)
        pages = None if place is None else files.view(place)
        if pages is None:
            lost += 1  # dropped already
        else:
            assert (pages == span(number).pages).all()
            sound += 1
    thread.join()
    assert last[0] == 599
    assert sound
    assert disk_bytes(tmp_path) <= files.limit


def test_files_of_others_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "spans-of-somebody").mkdir()
    strangers = [
        tmp_path / name
        for name in ("a.pages", "a.index", "spans-of-somebody/1.pages", "spans-of-somebody/1.index")
    ]
    for path in strangers:
        path.write_bytes(bytes(200_000))
    files = opened(tmp_path, NUM_SEGMENTS * 30_000)
    for number in range(200):
        assert files.append(span(number))
    assert disk_bytes(files.folder) <= files.limit
    assert all(path.stat().st_size == 200_000 for path in strangers)


def test_a_second_process_reads_what_was_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, range(5))
    first = opened(tmp_path)
    assert first.writable
    assert first.append(span(5))
    with caplog.at_level(logging.WARNING):
        second = opened(tmp_path)
    assert "another process writes the spans" in caplog.text
    assert not second.writable
    assert all(found(second, number) for number in range(6))
    assert not second.append(span(6))
    assert first.append(span(7))
    second.close()
    first.close()
    third = opened(tmp_path)
    assert third.writable
    assert all(found(third, number) for number in (0, 5, 7))


def test_a_reader_leaves_a_torn_tail_alone(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert first.append(span(0))
    index = next(tmp_path.glob("*/*.index"))
    with open(index, "ab") as file:
        file.write(b"torn")
    size = index.stat().st_size
    second = opened(tmp_path)
    assert found(second, 0)
    assert index.stat().st_size == size
    second.close()
    first.close()
    opened(tmp_path).close()
    assert index.stat().st_size == size - 4


def test_a_directory_that_cannot_be_had(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a directory")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(ConfigError, match="span_cache_dir"):
            opened(place)
    write(tmp_path, range(3))
    lock = next(tmp_path.glob("*/lock"))
    lock.unlink()
    lock.mkdir()
    files = opened(tmp_path)
    assert "read but not written" in caplog.text
    assert not files.writable
    assert all(found(files, number) for number in range(3))


def test_a_limit_without_room(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="span_cache_size is 1000 bytes"):
        opened(tmp_path / "none", 1000)
    assert not (tmp_path / "none").exists()
    files = opened(tmp_path, NUM_SEGMENTS * 30_000)
    large = span(2)
    assert not files.append(SavedSpan(*large[:4], large.pages.repeat(5, axis=0))), "larger than a segment"
    assert files.append(large)


def test_a_process_killed_at_any_moment(tmp_path: Path) -> None:
    """What it had said was written is found by the next one, and all of it is sound."""
    first = 0
    for delay in (0.0, 0.01, 0.02, 0.05, 0.03, 0.0, 0.01, 0.04):
        process = subprocess.Popen(
            [sys.executable, str(WRITER), str(tmp_path), str(first)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"{first}\n"
        time.sleep(delay)
        process.kill()
        said = [first, *map(int, process.communicate()[0].split("\n")[:-1])]
        files = opened(tmp_path)
        recent = said[-30:]  # older ones may have been dropped: the directory is bounded
        assert all(found(files, number) for number in recent)
        keys = {span(number).key for number in range(said[-1] + 2)}
        assert files._places.keys() <= keys
        assert all(found(files, number) for number in range(said[-1] + 2) if files.find(span(number).key))
        assert disk_bytes(tmp_path) <= LIMIT
        files.close()
        first = said[-1] + 1
