"""Damaged and hostile checkpoints by the thousand: ``python tests/fuzz.py --cases 100000`` counts their fates."""

import argparse
import copy
import io
import json
import math
import os
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sb3_maesn import MAESN
from sb3_maesn.checkpoints import load_checkpoint
from sb3_maesn.common.checkpoint.archive import CONFIG, TENSORS, CheckpointError
from sb3_maesn.common.checkpoint.file import checksums
from sb3_maesn.common.checkpoint.model_state import read_state
from tests.tiny import tiny

Rng = np.random.Generator
Members = dict[str, bytes]

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**30, 10**39, 0.5, -0.0, 1e308, 5e-324, "", "a" * 5000),
    *("antigravity", "os.system", "../../etc/passwd", "__import__('antigravity')", "\ud800", "\x00", "\x1b[2J", "NaN"),
    *([], {}, [1] * 100, [[]], {"a": 1}, {"linear": [1, 0, 0]}, {"linear": [1e308, -1e308, 1e-300]}, [10**9, 10**9]),
    *([65536] * 16, {"pi": [65536, 65536]}, {":type:": "int", ":serialized:": "gASVIQ=="}, "MAESN", "LatentMlpPolicy"),
)
NAMES = (
    "../evil",
    "/tmp/evil",
    "..\\evil",
    "a/../../evil",
    CONFIG,
    TENSORS,
    "model.safetensors/",
    "evil.pkl",
    "\u202econfig",
)
SLOWEST, LARGEST = 5.0, 600.0  # seconds of this process a case, megabytes all cases together
#: What Python reports when something is run, written or connected to.
FORBIDDEN = (
    "pickle.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.",
    "socket.connect",
    "os.remove",
)
FORBIDDEN_TOO = ("os.rename", "os.mkdir", "os.link", "os.symlink", "shutil.", "ctypes.dlopen", "code.__new__")


class Watch:
    """Notes forbidden events while a checkpoint is loaded; an audit hook cannot be taken away again."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and (event.startswith((*FORBIDDEN, *FORBIDDEN_TOO)) or (event == "open" and _writes(args))):
            self.seen.append(f"{event} {args!r}"[:200])


def _writes(args: tuple[Any, ...]) -> bool:
    flags = args[2] if isinstance(args[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


WATCH = Watch()


# Files that nobody signed again: all of these are refused, or hold the model that was saved


def flip_bits(data: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    for position in rng.integers(len(changed), size=rng.integers(1, 9)):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncate(data: bytes, rng: Rng) -> bytes:
    return data[: rng.integers(len(data))]


def insert(data: bytes, rng: Rng) -> bytes:
    where = int(rng.integers(len(data) + 1))
    return data[:where] + rng.bytes(int(rng.integers(1, 50))) + data[where:]


def move_block(data: bytes, rng: Rng) -> bytes:
    start, stop, where = sorted(rng.integers(len(data), size=3))
    return data[:start] + data[stop:where] + data[start:stop] + data[where:]


def fill_block(data: bytes, rng: Rng) -> bytes:
    start, stop = sorted(rng.integers(len(data), size=2))
    return data[:start] + bytes([int(rng.integers(256))]) * int(stop - start) + data[stop:]


DAMAGES: tuple[Callable[[bytes, Rng], bytes], ...] = (flip_bits, truncate, insert, move_block, fill_block)


def hostile_zip(members: Members, rng: Rng) -> bytes:
    """A zip file of the right members that does something it should not."""
    buffer, kind = io.BytesIO(), int(rng.integers(8))
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members.items():
            info = zipfile.ZipInfo(str(rng.choice(NAMES)) if kind == 0 else name)
            info.external_attr = 0o120777 << 16 if kind == 1 else 0
            info.compress_type = zipfile.ZIP_LZMA if kind == 2 else zipfile.ZIP_STORED
            content = b" " * 2**25 + data if kind == 3 else data  # 32 MB of spaces, squeezed
            info.compress_type = zipfile.ZIP_DEFLATED if kind == 3 else info.compress_type
            archive.writestr(info, content)
        if kind == 4:
            archive.comment = rng.bytes(20)
        if kind == 5:
            archive.writestr(str(rng.choice(NAMES)) + "2", b"evil")
        if kind == 6:
            for i in range(int(rng.integers(100, 2000))):
                archive.writestr(f"{i}", b"")
    data = buffer.getvalue()
    if kind == 7:  # declare other sizes, flags or methods in one of the headers
        position = data.find(b"PK\x01\x02") + int(rng.integers(6, 46))
        data = data[:position] + rng.bytes(4) + data[position + 4 :]
    return data


# Files whose sums are right: refused, or a model that acts


def change_config(content: dict[str, Any], rng: Rng) -> dict[str, Any]:
    """Replace, remove or add a value somewhere in the settings."""
    changed = json.loads(json.dumps(content))
    for _ in range(int(rng.integers(1, 4))):
        holder: Any = changed
        while True:
            keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key: Any = keys[rng.integers(len(keys))] if keys else "new"
            inner = holder[key] if keys else None
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.1:
                break
            holder = inner
        value, action = copy.deepcopy(NASTY[rng.integers(len(NASTY))]), rng.random()  # later changes may go into it
        if isinstance(holder, list):
            holder.append(value) if action < 0.3 or not holder else holder.__setitem__(key, value)
        elif action < 0.1 and keys:
            del holder[key]
        else:
            holder[str(NASTY[rng.integers(len(NASTY))])[:50] if action < 0.2 else key] = value
    return changed


def deep_config(content: dict[str, Any], rng: Rng) -> bytes:
    """Text that costs more than its bytes: nesting, digits, repeated keys, numbers that are none."""
    depth = int(rng.integers(10, 100_000))
    texts = (
        "[" * depth + "]" * depth,
        '{"a":' * depth + "1" + "}" * depth,
        "9" * depth,
        f"1e{depth}",
        "NaN",
        "-Infinity",
    )
    text = texts[rng.integers(len(texts))]
    plain = json.dumps(content)
    return (plain[:-1] + f', "{rng.choice(["progress", "new", "format_version"])}": {text}}}').encode()[: 2**20 + 5]


def change_tensors(data: bytes, rng: Rng) -> bytes:
    """Names, types, shapes, places or numbers of the tensors."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    name = names[rng.integers(len(names))]
    entry, action = header[name], int(rng.integers(8))
    if action == 0:
        header[str(NASTY[rng.integers(len(NASTY))])] = header.pop(name)
    elif action == 1:
        entry["dtype"] = str(rng.choice(["F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "pickle", "F32"]))
    elif action == 2:
        entry["shape"] = [int(n) for n in rng.choice([0, 1, 2, 2**31, 2**62], size=rng.integers(0, 6))]
    elif action == 3:
        entry["data_offsets"] = [int(n) for n in rng.choice([0, 4, 2**20, 2**62], size=2)]
    elif action == 4:
        entry["shape"] = [*entry["shape"][::-1], 1]
    elif action == 5:
        del header[name]
    else:
        value = [math.nan, math.inf, -math.inf][rng.integers(3)]
        start, stop = entry["data_offsets"]
        where = start + 4 * int(rng.integers(max((stop - start) // 4, 1)))
        body[where : where + 4] = struct.pack("<f", value)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def signed(content: dict[str, Any], tensors: bytes) -> Members:
    try:
        sums = checksums(content, tensors)
    except ValueError:
        sums = {}
    return {TENSORS: tensors, CONFIG: json.dumps({**content, "sha256": sums}).encode()}


class Fuzzer:
    """Makes a damaged checkpoint of a number, and looks at what loading it does.

    :param folder: to write in
    """

    def __init__(self, folder: Path):
        self.folder = folder
        model = tiny(baseline="critic", n_critic_updates=1)
        model.learn(model.timesteps_per_iteration)
        self.tensors = read_state(model)[0]
        model.learn_score_prior(n_latents=12, n_tasks=5)
        model.save_checkpoint(folder / "whole")
        model.save_checkpoint(folder / "whole.zip")
        self.members = {name: (folder / "whole" / name).read_bytes() for name in (TENSORS, CONFIG)}
        self.content = json.loads(self.members[CONFIG])
        del self.content["sha256"]
        self.zip = (folder / "whole.zip").read_bytes()
        load_checkpoint(folder / "whole")  # whatever is imported late is imported now

    def make(self, seed: int) -> tuple[str, Path]:
        """Write the case: its kind, and where it is."""
        rng = np.random.default_rng(seed)
        kinds = ("damaged zip", "damaged folder", "hostile zip", "changed config", "deep config", "changed tensors")
        kind = str(rng.choice(kinds, p=(0.25, 0.2, 0.1, 0.25, 0.05, 0.15)))
        members = dict(self.members)
        if kind == "damaged zip":
            return kind, self.write_zip(DAMAGES[rng.integers(len(DAMAGES))](self.zip, rng))
        if kind == "hostile zip":
            return kind, self.write_zip(hostile_zip(members, rng))
        if kind == "damaged folder":
            name = str(rng.choice([TENSORS, CONFIG]))
            members[name] = DAMAGES[rng.integers(len(DAMAGES))](members[name], rng)
        elif kind == "changed config":
            members = signed(change_config(self.content, rng), members[TENSORS])
        elif kind == "deep config":
            members[CONFIG] = deep_config(self.content, rng)
        else:
            members = signed(self.content, change_tensors(members[TENSORS], rng))
        for name, data in members.items():
            (self.folder / "case" / name).parent.mkdir(exist_ok=True)
            (self.folder / "case" / name).write_bytes(data)
        return kind, self.folder / "case"

    def write_zip(self, data: bytes) -> Path:
        path = self.folder / "case.zip"
        path.write_bytes(data)
        return path

    def run(self, seed: int) -> tuple[str, str]:
        """Load the case.

        :return: its kind, and ``refused`` or ``loaded``
        :raises AssertionError: for anything but a CheckpointError of one short line, or a model that is as it should be
        """
        kind, path = self.make(seed)
        before, started = sorted(self.folder.rglob("*")), time.process_time()
        WATCH.on = True
        try:
            model: Any = load_checkpoint(path)
        except CheckpointError as error:
            model = None
            message = str(error)
            assert len(message) < 2000, (seed, message)
            assert message.isprintable(), (seed, message)
        finally:
            WATCH.on = False
        assert time.process_time() - started < SLOWEST, (seed, kind)
        assert not WATCH.seen, (seed, WATCH.seen)
        assert sorted(self.folder.rglob("*")) == before, (seed, kind)
        assert "antigravity" not in sys.modules, seed
        if model is not None:
            self.check(model, seed, kind)
        return kind, "refused" if model is None else "loaded"

    def check(self, model: MAESN, seed: int, kind: str) -> None:
        tensors, _ = read_state(model)
        for name, value in tensors.items():
            assert bool(value.isfinite().all()), (seed, name)
            if kind in ("damaged zip", "damaged folder", "hostile zip"):
                assert bool((value == self.tensors[name]).all()), (seed, name)
        action, _ = model.predict(np.zeros((2, *model.observation_space.shape)))  # type: ignore[misc]  # its spaces are Boxes
        assert np.isfinite(action).all(), (seed, kind)
        if model.score_prior is not None:
            points = model.score_prior.at(np.zeros((1, 3, model.policy.latent_dim)))
            assert np.isfinite(points.mean).all(), (seed, kind)
            assert np.isfinite(points.features).all(), (seed, kind)


def run_many(folder: Path, seeds: range) -> Counter[tuple[str, str]]:
    """Load many cases.

    :param folder: to write in
    :param seeds: of the cases
    :return: how often each kind was refused or loaded
    """
    fuzzer, start = Fuzzer(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = Counter(fuzzer.run(seed) for seed in seeds)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    assert grown < LARGEST, f"memory grew by {grown:.0f} MB"
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    args = parser.parse_args()
    th.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = run_many(Path(folder), range(args.seed, args.seed + args.cases))
    print("kind,outcome,cases")
    for (kind, outcome), n in sorted(counts.items()):
        print(f"{kind},{outcome},{n}")
    print(f"{args.cases} cases in {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
