"""The cache of tensors: whole or absent after anything that can happen to a process or a disk, and never too large."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.samples.cache import Entry, SampleCache

SHAPE = (4, 1000)


def entry(name: str, *tensors: str) -> Entry:
    return Entry(name, dict.fromkeys(tensors or ("h",), (SHAPE, torch.float32)))


class Source:
    """Computes an entry's tensors, a constant of its own at every call, and counts the calls."""

    def __init__(self, *tensors: str) -> None:
        self.tensors, self.calls = tensors or ("h",), 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return {name: torch.full(SHAPE, self.calls, dtype=torch.float32) for name in self.tensors}


def files(cache: SampleCache) -> list[Path]:
    return sorted(cache.folder.glob("*.safetensors"))


def held(cache: SampleCache) -> int:
    return sum(path.stat().st_size for path in files(cache))


@pytest.fixture
def cache(tmp_path: Path) -> SampleCache:
    return SampleCache(tmp_path / "root" / "cache")


def test_what_was_computed_once_is_read_from_then_on(cache: SampleCache) -> None:
    source = Source("x", "h")
    first = cache.get_or_compute(entry("aa", "x", "h"), source)
    again = SampleCache(cache.folder).get_or_compute(entry("aa", "h"), source)
    assert source.calls == 1 and torch.equal(again["h"], first["h"]) and again.keys() == {"h"}
    assert cache.get_or_compute(entry("ab", "x", "h"), source)["h"][0, 0] == 2
    assert cache.read(entry("ac")) is None


def test_only_what_is_missing_of_an_entry_is_written(cache: SampleCache) -> None:
    cache.get_or_compute(entry("aa", "h"), Source("h"))
    [before] = files(cache)
    stamp = before.stat().st_ino
    both = cache.get_or_compute(entry("aa", "h", "x"), Source("h", "x"))
    assert both.keys() == {"h", "x"} and len(files(cache)) == 2 and before.stat().st_ino == stamp


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_precision_comes_back_to_the_last_bit(cache: SampleCache, dtype: torch.dtype) -> None:
    value = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    wanted = Entry("aa", {"h": ((3, 5), dtype)})
    cache.get_or_compute(wanted, lambda: {"h": value})
    read = cache.read(wanted)
    assert read is not None and torch.equal(read["h"], value) and read["h"].dtype == dtype


def test_tensors_are_mapped_and_writing_to_one_does_not_reach_the_file(cache: SampleCache) -> None:
    wanted = Entry("aa", {"h": ((1 << 16,), torch.float32)})
    cache.get_or_compute(wanted, lambda: {"h": torch.ones(1 << 16)})
    mapped, other = cache.read(wanted), cache.read(wanted)
    assert mapped is not None and other is not None
    if sys.platform == "linux":
        assert str(files(cache)[0]) in Path("/proc/self/maps").read_text()
    mapped["h"].zero_()
    assert other["h"].sum() == cache.get_or_compute(wanted, Source())["h"].sum() == 1 << 16


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def one_bit_off(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def other_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def other_shape(path: Path) -> None:
    """A sound file of something else."""
    elsewhere = SampleCache(path.parent / "elsewhere")
    elsewhere.get_or_compute(Entry("aa", {"h": ((2,), torch.float32)}), lambda: {"h": torch.zeros(2)})
    shutil.copy(files(elsewhere)[0], path)


@pytest.mark.parametrize("damage", [truncated, empty, one_bit_off, other_header, other_shape])
def test_what_is_damaged_is_thrown_away_and_computed_again(cache: SampleCache, damage: Callable[[Path], None]) -> None:
    source = Source()
    cache.get_or_compute(entry("aa"), source)
    damage(files(cache)[0])
    assert cache.read(entry("aa")) is None and not files(cache)
    assert (cache.get_or_compute(entry("aa"), source)["h"] == 2).all()
    assert (cache.get_or_compute(entry("aa"), source)["h"] == 2).all() and source.calls == 2


def test_the_bound_holds_and_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    size = entry("aa").nbytes
    cache, source = SampleCache(tmp_path, int(3.5 * size)), Source()
    for n, name in enumerate(("aa", "bb", "cc")):
        cache.get_or_compute(entry(name), source)
        os.utime(files(cache)[n], ns=(n, n))
    assert cache.read(entry("aa")) is not None  # used again
    reading = cache.read(entry("bb"))
    assert reading is not None
    os.utime(tmp_path / "bb.h.safetensors", ns=(1, 1))
    cache.get_or_compute(entry("dd"), source)
    assert {path.name[:2] for path in files(cache)} == {"aa", "cc", "dd"} and held(cache) <= cache.limit_bytes
    assert (reading["h"] == 2).all()  # removed while it was read
    exact = SampleCache(tmp_path / "exact", 3 * files(cache)[0].stat().st_size - 1)  # the files' headers count too
    for name in ("ee", "ff", "gg"):
        for bounded in (cache, exact):
            bounded.get_or_compute(entry(name), source)
            assert held(bounded) <= bounded.limit_bytes
    assert {path.name[:2] for path in files(cache)} == {"ee", "ff", "gg"}


def test_what_does_not_fit_is_computed_and_nothing_goes_for_it(tmp_path: Path) -> None:
    size = entry("aa").nbytes
    cache, source = SampleCache(tmp_path, size + 1000), Source("h", "x")
    cache.get_or_compute(entry("aa"), source)
    assert cache.get_or_compute(entry("bb", "h", "x"), source).keys() == {"h", "x"}
    assert not cache.compute_if_free(entry("bb", "h", "x"), source)
    assert [path.name[:2] for path in files(cache)] == ["aa"]
    assert cache.has_room_for(size // 2) and not cache.has_room_for(size)


def test_half_of_a_small_disk_is_left_to_others(cache: SampleCache, monkeypatch: pytest.MonkeyPatch) -> None:
    size = entry("aa").nbytes
    monkeypatch.setattr(
        "core.samples.cache.shutil.disk_usage", lambda _: type("Usage", (), {"free": 6 * size - held(cache)})
    )
    for name in ("aa", "bb", "cc", "dd", "ee"):
        cache.get_or_compute(entry(name), Source())
        assert held(cache) <= 3 * size
    assert len(files(cache)) == 2  # with their headers, three are more than half


def test_a_disk_that_refuses_costs_time_only(cache: SampleCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    source = Source()
    with monkeypatch.context() as patched:
        patched.setattr("core.samples.cache.save_file", full)
        assert cache.get_or_compute(entry("aa"), source)["h"].shape == SHAPE
        assert not cache.compute_if_free(entry("aa"), source)
    assert source.calls == 2 and not files(cache) and not list(cache.folder.glob(".*"))
    blocked = SampleCache(cache.folder / "locks" / "writer" / "cache")  # a file where a folder would have to be
    assert blocked.get_or_compute(entry("aa"), source)["h"].shape == SHAPE and not blocked.has_room_for(1)
    with monkeypatch.context() as patched:
        patched.setattr("core.samples.cache.lock_descriptor", full)
        assert cache.get_or_compute(entry("aa"), source)["h"].shape == SHAPE
    assert not files(cache)


def test_an_error_of_the_computation_leaves_no_lock(cache: SampleCache) -> None:
    def fails() -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.get_or_compute(entry("aa"), fails)
    assert cache.compute_if_free(entry("aa"), Source()) and entry("aa") in cache


@contextmanager
def other_process(cache: SampleCache, script: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `script` on the same cache; it tells how far it is on its standard output."""
    setup = f"""
        import sys, time, torch, core.samples.cache
        from pathlib import Path
        from core.samples.cache import Entry, SampleCache
        cache = SampleCache(Path({str(cache.folder)!r}))
        entry = Entry("aa", {{"h": ({SHAPE}, torch.float32)}})
        def wait(*_):
            print("there", flush=True)
            time.sleep(100)
    """
    code = textwrap.dedent(setup) + textwrap.dedent(script)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        yield process
    finally:
        process.kill()
        process.communicate()


HALF_WRITTEN = """
    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        wait()
    core.samples.cache.save_file = half
    cache.get_or_compute(entry, lambda: {"h": torch.zeros(4, 1000)})
"""
WRITTEN_BUT_NOT_RENAMED = """
    core.files.os.replace = wait
    cache.get_or_compute(entry, lambda: {"h": torch.zeros(4, 1000)})
"""
COMPUTING = "cache.get_or_compute(entry, wait)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [HALF_WRITTEN, WRITTEN_BUT_NOT_RENAMED, COMPUTING], ids=["half", "whole", "computing"]
)
def test_a_process_killed_on_the_way_leaves_nothing_wrong(cache: SampleCache, moment: str) -> None:
    source = Source()
    with other_process(cache, moment) as process:
        assert cache.read(entry("aa")) is None
        assert cache.compute_if_free(entry("aa"), source) and source.calls == 0  # the other one is at it
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not files(cache)
    assert (cache.get_or_compute(entry("aa"), source)["h"] == 1).all() and entry("aa") in cache
    assert not list(cache.folder.glob(".*"))  # what was half written is gone too


@pytest.mark.slow
def test_who_comes_second_waits_for_the_first(cache: SampleCache) -> None:
    script = """
        def compute():
            print("there", flush=True)
            time.sleep(0.5)
            return {"h": torch.full((4, 1000), 7.0)}
        cache.get_or_compute(entry, compute)
    """
    source = Source()
    with other_process(cache, script):
        assert (cache.get_or_compute(entry("aa"), source)["h"] == 7).all()
    assert source.calls == 0
