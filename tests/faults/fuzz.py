"""Hostile files, by the hundred thousand: each is read, or refused with the documented error, and nothing else happens.

    python -m tests.faults.fuzz --examples 100000          a line for each of the three readers
    python -m tests.faults.fuzz --examples 5000 --only spec --seed 7

While a file is read, no file outside of its folder is opened (an audit hook hears of every one; what lies behind a link
is told by a canary), and the process can have no more than `ROOM` of memory beside what it had (RLIMIT_AS): whatever
would allocate more gets a MemoryError, which is not the documented error.
"""

import argparse
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from core.directions import reading
from core.directions.direction_set import DirectionSet
from core.errors import DirectionSetError
from orchestrator.search.space import fits
from orchestrator.spec import SpecError, Sweep, load, parse
from tests.faults.hostile import FRAGMENTS, HOSTILE, bitten, replaced

ROOM = 256 << 20  # bytes of memory that reading may add to the process
TENSORS = 8 << 20  # of a direction set, in place of core.directions.reading.MAX_TENSOR_BYTES
PATIENCE = 5.0  # seconds for one input
INNER = 20  # inputs made from each of hypothesis' examples
CANARY = "canary-of-the-fuzzer"

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"hypothesis-{os.getuid()}")


@dataclass
class Tally:
    """What became of the inputs."""

    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds

    @property
    def inputs(self) -> int:
        """All of them."""
        return self.accepted + self.refused


# --- what is watched -------------------------------------------------------------------------------------------------

_ALLOWED: list[str] = []  # the folder being read; empty while nothing is
_OWN = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])})  # Python imports when it first needs to
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")


class Escaped(BaseException):
    """A reader did what no reader may; not an Exception, so that nothing can take it for the documented error."""


def _hear(event: str, details: tuple[Any, ...]) -> None:
    if not _ALLOWED:
        return
    if event in _FORBIDDEN:
        raise Escaped(f"{event}{details!r}")
    if event == "open" and isinstance(details[0], str | bytes):
        path = os.path.abspath(os.fsdecode(details[0]))
        imported = path.startswith(_OWN) and path.endswith((".py", ".pyc", ".so"))
        if not path.startswith(_ALLOWED[0]) and not imported:
            raise Escaped(f"opened {path}")


sys.addaudithook(_hear)


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    _ALLOWED[:] = [f"{folder}{os.sep}"]
    try:
        yield
    finally:
        _ALLOWED.clear()


@contextmanager
def _bounded() -> Iterator[None]:
    """At most ROOM more of memory for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _workplace() -> Iterator[Path]:
    """An empty folder in memory where there is such a place, inside one that holds what nobody may read."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        place = Path(name).resolve() / "input"
        place.mkdir()
        yield place


def _once(tally: Tally, folder: Path, attempt: Callable[[], None], refusal: type[Exception]) -> None:
    """Read one input, and note what became of it."""
    started = time.perf_counter()
    with _watched(folder):
        try:
            attempt()
            tally.accepted += 1
        except refusal as error:
            if type(error) is not refusal or not str(error).strip() or "Traceback" in str(error):
                raise AssertionError(f"not a sentence: {error!r}") from error
            tally.refused += 1
    tally.slowest = max(tally.slowest, time.perf_counter() - started)
    assert tally.slowest < PATIENCE


# --- what is made ----------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_EXAMPLE = st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=200), st.lists(_JSON, min_size=1, max_size=3))


def _run(examples: int, start: int, make: Callable[[random.Random, bytes, list[Any]], None]) -> None:
    """make(chance, raw bytes, hostile values) for every one of hypothesis' examples."""

    @seed(start)
    @settings(
        max_examples=-(-examples // INNER),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_EXAMPLE)
    def each(example: tuple[int, bytes, list[Any]]) -> None:
        number, raw, values = example
        make(random.Random(number), raw, values)

    each()


# --- sweep files -----------------------------------------------------------------------------------------------------

_SWEEPS: tuple[dict[str, Any], ...] = (
    {"name": "a", "model": "toyfaces", "search": {"directions": {"choice": [8, 12]}}},
    {
        "name": "b",
        "model": "mnist",
        "method": {"choice": ["learned", "pca"]},
        "search": {
            "shift_scale": {"float": [0.1, 2], "log": True, "when": {"method": "learned"}},
            "pca.samples": {"int": [64, 128], "step": 32},
        },
        "objectives": [{"identifiability": "max"}],
    },
    {
        "name": "c",
        "model": "m",
        "sampler": {"steps": 4, "window": [900, 100], "eta": 0},
        "train": {"batch": 8, "micro_batch": 4},
        "search": {"start": {"choice": ["pca", "random"]}, "direction_rate": 1e-3},
        "scheduler": {"asha": {"grace": 5}},
        "budget": {"trials": 4, "hours": 1.5},
        "gradient": {"memory": "2GiB"},
        "tracking": {"experiment": "e"},
        "export": {"register": "r"},
    },
)
_TEXTS = (
    b"name: a\nmodel: toyfaces\nsearch:\n  directions: {choice: [8, 12]}\n",
    b"name: a\nmodel: &m toyfaces\npredictor: *m\nsearch: {seed: &s {int: [0, 9]}}\nbudget: {trials: 3}\n",
    b"base: &b {batch: 8}\ntrain:\n  <<: *b\n  iterations: 5\nname: 'x'\nsearch: {orthonormal: {choice: [on, off]}}\n",
)
_OVERRIDES = ("seed=", "train.batch=", "search.start=", "search.pca.samples=", "sampler=", "a.b.c.d=", "=", "x", "..=")


def fuzz_spec(examples: int, start: int = 0) -> Tally:
    """Sweep files and overrides, through `orchestrator.spec.load`."""
    tally = Tally()
    with _workplace() as place, _bounded():
        path = place / "sweep.yaml"

        def make(chance: random.Random, raw: bytes, values: list[Any]) -> None:
            for _ in range(INNER):
                path.write_bytes(_sweep(chance, raw, values))
                overrides = [_override(chance, raw, values)] if chance.random() < 0.1 else []
                _once(tally, place, lambda given=overrides: _use(load(path, given)), SpecError)

        _run(examples, start, make)
    return tally


def _sweep(chance: random.Random, raw: bytes, values: list[Any]) -> bytes:
    kind = chance.random()
    if kind < 0.05:
        return raw
    if kind < 0.5:
        return bitten(chance.choice(_TEXTS), chance, raw)
    changed: Any = chance.choice(_SWEEPS)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        changed = replaced(changed, chance, values)
    content = json.dumps(changed, default=str).encode()  # JSON is YAML
    return bitten(content, chance, raw) if chance.random() < 0.1 else content


def _override(chance: random.Random, raw: bytes, values: list[Any]) -> str:
    value = chance.choice((*HOSTILE, *values))
    text = (
        json.dumps(value)
        if chance.random() < 0.7
        else chance.choice((*FRAGMENTS, raw)).decode(errors="surrogateescape")
    )
    return chance.choice(_OVERRIDES) + text


def _use(sweep: Sweep) -> None:
    """What every verb does with a sweep before it does anything else."""
    assert parse(sweep.resolved()).identity() == sweep.identity()
    assert isinstance(fits(sweep), bool) and sweep.micro_batches
    assert not {"/", "\\", "\0"} & set(sweep.name + sweep.experiment * (sweep.tracking.uri is None))


# --- direction sets and exports --------------------------------------------------------------------------------------


def fuzz_direction_set(examples: int, start: int = 0) -> Tally:
    """Folders of a direction set, through `DirectionSet.load`."""
    return _fuzz_folder(examples, start, extra={})


def fuzz_export(examples: int, start: int = 0) -> Tally:
    """Folders of an export; what else lies in one is not so much as opened."""
    return _fuzz_folder(examples, start, extra={"traversal.png": b"\x89PNG\r\n\x1a\n" + bytes(64), "README.md": b"# 2"})


def _fuzz_folder(examples: int, start: int, extra: dict[str, bytes]) -> Tally:
    tally, limit = Tally(), reading.MAX_TENSOR_BYTES
    reading.MAX_TENSOR_BYTES = TENSORS
    try:
        with _workplace() as place:
            valid = {**_files(place.parent / "made", "direction"), **extra}
            for name, content in _files(place.parent / "secret", CANARY).items():
                (place.parent / name).write_bytes(content)  # where a link from `place` could lead

            def make(chance: random.Random, raw: bytes, values: list[Any]) -> None:
                for _ in range(INNER):
                    _lay_out(place, valid, chance, raw, values)
                    _once(tally, place, lambda: _edit(DirectionSet.load(place)), DirectionSetError)

            with _bounded():
                _run(examples, start, make)
    finally:
        reading.MAX_TENSOR_BYTES = limit
    return tally


def _files(folder: Path, name: str) -> dict[str, bytes]:
    """The two files of a small set whose directions have this name."""
    table = torch.nn.functional.normalize(torch.ones(2, 3, 4, 1, 1), dim=2)
    names, origin = (name, f"{name}_1"), {"method": "random", "settings": {"seed": 0}, "window": [900, 100]}
    DirectionSet(table, torch.ones(2, 3), (900, 500, 100), names, {"diversity": 0.5}, origin).save(folder)
    made = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    return made


def _lay_out(place: Path, valid: dict[str, bytes], chance: random.Random, raw: bytes, values: list[Any]) -> None:
    """The files of a set into `place`, some of them not what they should be."""
    for left in place.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    files = dict(valid)
    for _ in range(chance.choice((0, 1, 1, 1, 2))):
        name = chance.choice(list(files))
        files[name] = _changed(name, files[name], chance, raw, values)
    special = chance.choice(list(files)) if chance.random() < 0.15 else None
    for name, content in files.items():
        if name == special:
            _special(place / name, content, chance)
        else:
            (place / name).write_bytes(content)


def _changed(name: str, content: bytes, chance: random.Random, raw: bytes, values: list[Any]) -> bytes:
    kind = chance.random()
    if kind < 0.05:
        return raw
    if kind < 0.3 or not name.startswith("directions."):
        return bitten(content, chance, raw)
    try:
        if name.endswith(".json"):
            return json.dumps(replaced(json.loads(content), chance, values)).encode()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(replaced(json.loads(content[8 : 8 + length]), chance, values)).encode()
        said = (
            len(header)
            if chance.random() < 0.9
            else chance.choice((0, 1, len(content), 2**16, 2**32, 2**63, 2**64 - 1))
        )
        return struct.pack("<Q", said) + header + content[8 + length :]
    except (ValueError, struct.error):  # changed before, and no JSON any more
        return bitten(content, chance, raw)


def _special(path: Path, content: bytes, chance: random.Random) -> None:
    """Something other than an ordinary file of a bearable size."""
    match chance.randrange(8):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(chance.choice((path.parent.parent / path.name, f"../{path.name}", "/dev/zero", path.name)))
        case 3:
            path.symlink_to(path.parent.parent)
        case 4:
            path.write_bytes(content)
            os.truncate(path, chance.choice((2**22 + 1, 2**26, 2**40)))  # holes: it takes no room
        case 5:
            _hollow(path, chance)
        case 6:
            path.with_name(f"more{path.suffix}").write_bytes(content)
        case _:
            path.with_name("extra").symlink_to("/")
            path.write_bytes(content)


def _hollow(path: Path, chance: random.Random) -> None:
    """A safetensors file that is right in itself, and all holes: consistent claims of more than is allowed."""
    count = chance.choice((2, 2**16, 2**24, 2**31))
    size, lengths = count * 3 * 4 * 4, count * 3 * 4
    entries = {
        "table": {"dtype": "F32", "shape": [count, 3, 4, 1, 1], "data_offsets": [0, size]},
        "sigma": {"dtype": "F32", "shape": [count, 3], "data_offsets": [size, size + lengths]},
    }
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size + lengths)


def _edit(directions: DirectionSet) -> None:
    """What is accepted can be used, and holds nothing of what lies outside."""
    told = json.dumps([directions.names, dict(directions.metrics), dict(directions.provenance)], allow_nan=False)
    assert CANARY not in directions.names, "a link was followed"
    assert told.isascii() and not any(set(name) & set("\0\n\x1b\ud800") for name in directions.names)
    delta = directions.shift(directions.names[0])(len(directions.timesteps) - 1)
    assert delta is not None and delta.shape == (1, *directions.h_shape)


# --- the command -----------------------------------------------------------------------------------------------------

TARGETS = {"spec": fuzz_spec, "directions": fuzz_direction_set, "export": fuzz_export}


def main() -> None:
    """Fuzz one reader or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000, help="inputs for each reader")
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in [given.only] if given.only else TARGETS:
        started = time.perf_counter()
        tally = TARGETS[name](given.examples, given.seed)
        print(
            f"{name:11}{tally.inputs:>9,} inputs: {tally.accepted:,} read, {tally.refused:,} refused; "
            f"{time.perf_counter() - started:.0f} s, the slowest {tally.slowest * 1000:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
