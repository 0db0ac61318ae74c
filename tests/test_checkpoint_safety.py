"""Checkpoints of strangers: nothing in them runs, and whatever is wrong with them is said in one error of ours."""

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # has no types
import numpy as np
import pytest
import torch as th

from sb3_maesn import MAESN
from sb3_maesn.checkpoints import load_checkpoint
from sb3_maesn.common.checkpoint.archive import CONFIG, TENSORS, CheckpointError
from sb3_maesn.common.checkpoint.file import checksums
from sb3_maesn.common.checkpoint.tensor_file import dump_tensors
from tests.fuzz import run_many
from tests.test_playing import tiny_rl2
from tests.tiny import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    tiny().save_checkpoint(folder)
    return {name: (folder / name).read_bytes() for name in (TENSORS, CONFIG)}


def write(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in members.items():
        (folder / name).write_bytes(data)
    return folder


def write_signed(folder: Path, members: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> Path:
    """With other settings and the sums that fit them, as whoever wants to deceive would."""
    content = json.loads(members[CONFIG])
    del content["sha256"]
    change(content)
    content["sha256"] = checksums(content, members[TENSORS])
    return write(folder, {**members, CONFIG: json.dumps(content).encode()})


def zipped(members: dict[str, bytes], **info: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(member, key, value)
            archive.writestr(member, data)
    return buffer.getvalue()


def test_over_a_thousand_damaged_and_hostile_files_are_refused(tmp_path: Path) -> None:
    counts = run_many(tmp_path, range(1200))
    assert sum(counts.values()) == 1200
    for kind in ("damaged folder", "deep config"):
        assert counts[kind, "loaded"] == 0
    assert sum(n for (_, outcome), n in counts.items() if outcome == "refused") > 1000


class Payload:
    """What a stranger would hide: a command that runs when it is unpickled; here it only makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def hostile_sb3_zip(path: Path, field: str, marker: Path) -> None:
    """SB3's own file of a model, with code in one of its fields."""
    tiny().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if field.endswith(".pth"):
        buffer = io.BytesIO()
        th.save(Payload(marker), buffer)
        members[field] = buffer.getvalue()
    else:
        data = json.loads(members["data"])
        data[field] = {
            ":type:": "int",
            ":serialized:": base64.b64encode(cloudpickle.dumps(Payload(marker))).decode(),
        }
        members["data"] = json.dumps(data).encode()
    path.write_bytes(zipped(members))


@pytest.mark.parametrize("field", ["learning_rate", "policy_class", "observation_space", "gamma", "anything"])
def test_code_in_a_file_of_sb3_runs_with_its_load_and_never_with_ours(tmp_path: Path, field: str) -> None:
    marker, path = tmp_path / "was_here", tmp_path / "model.zip"
    hostile_sb3_zip(path, field, marker)
    for load in (MAESN.load_checkpoint, MAESN.from_pretrained, load_checkpoint):
        with pytest.raises(
            CheckpointError, match="a file of Stable-Baselines3, whose `load` runs whatever code it holds"
        ):
            load(path)
    assert not marker.exists()
    with contextlib.suppress(Exception):  # the code has run by then, whatever becomes of the model
        MAESN.load(path)
    assert marker.exists()


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_code_in_place_of_our_files_does_not_run(tmp_path: Path, saved: dict[str, bytes], name: str) -> None:
    marker = tmp_path / "was_here"
    pickled = cloudpickle.dumps(Payload(marker))
    for path, data in (("folder", None), ("model.zip", zipped({**saved, name: pickled}))):
        target = tmp_path / path
        target.write_bytes(data) if data else write(target, {**saved, name: pickled})
        with pytest.raises(CheckpointError):
            load_checkpoint(target)
    assert not marker.exists()


def test_loading_does_not_even_import_pickles_for_code(tmp_path: Path, saved: dict[str, bytes]) -> None:
    """In a process of its own, where unpickling anything at all is an error."""
    write(tmp_path / "model", saved)
    code = (
        "import pickle, cloudpickle, torch\nfrom sb3_maesn import MAESN\n"
        "def refuse(*_, **__): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = cloudpickle.load = cloudpickle.loads = torch.load = refuse\n"
        "print(MAESN.load_checkpoint('model').seed)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), "a newer sb3_maesn can read it"),
        (lambda c: c.update(format="pickle"), "expected a sb3_maesn checkpoint"),
        (lambda c: c.update(algorithm="os.system"), "got one of 'os.system'"),
        (lambda c: c.update(policy="os.system"), "one of the policies LatentMlpPolicy, got 'os.system'"),
        (lambda c: c["policy_kwargs"].update(activation_fn="os.system"), "activation_fn cannot be 'os.system'"),
        (lambda c: c["policy_kwargs"].update(features_extractor_class="x"), "features_extractor_class cannot be"),
        (lambda c: c["policy_kwargs"].update(dist_kwargs={}), "expected policy arguments among"),
        (lambda c: c["policy_kwargs"].update(net_arch=[60_000, 60_000]), "networks of at most"),
        (lambda c: c["policy_kwargs"].update(latent_dim=60_000, net_arch=[60_000]), "networks of at most"),
        (lambda c: c["policy_kwargs"].update(net_arch=[9]), "of shape"),
        (lambda c: c["hyperparameters"].update(surprise=1), "not known .*surprise"),
        (lambda c: c["hyperparameters"].update(gamma="0.9"), "a value like 0.99 for gamma"),
        (lambda c: c["hyperparameters"].update(gamma=7.0), "between 0 and 1"),
        (lambda c: c["hyperparameters"].update(n_episodes=10**30), "a smaller value for n_episodes"),
        (lambda c: c["hyperparameters"].update(learning_rate={"linear": [1, 0, 0]}), "or a linear schedule"),
        (lambda c: c["observation_space"].update(shape=[10**6, 10**6]), "expected a Box space"),
        (lambda c: c["observation_space"].update(shape=[3]), "of shape"),
        (lambda c: c["observation_space"].update(type="Dict"), "expected a space, one of Box"),
        (lambda c: c["action_space"].update(low=2.0), "above the upper"),
        (lambda c: c["action_space"].update(dtype="object"), "a known type"),
        (lambda c: c["progress"].update(n_train_tasks=2**40), "whole number"),
        (lambda c: c["progress"].update(n_train_tasks=99), "of shape"),
        (lambda c: c["progress"].update(n_steps=2**19, n_envs=2**19), "a smaller model"),
        (lambda c: c["progress"].update(policy=1), "expected progress of"),
        (lambda c: c["progress"].update(seed=2**40), "whole number"),
        (lambda c: c["optimizers"]["policy.optimizer"][0].update(lr="1"), "a value like"),
        (lambda c: c["optimizers"].update(other=[]), "expected the optimisers"),
        (lambda c: c["task_family"].update(id=7), "expected a task family"),
        (lambda c: c.update(contents="all"), "expected contents to be one of"),
        (lambda c: c.pop("versions"), "expected the keys"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason(
    tmp_path: Path, saved: dict[str, bytes], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write_signed(tmp_path / "case", saved, change))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lstm_hidden_size": 900, "n_lstm_layers": 32}, r"weights, got layers of \[32, 900\]"),
        ({"lstm_hidden_size": 60, "n_lstm_layers": 60_000}, "networks of at most"),
        ({"lstm_hidden_size": 300}, "expected a smaller model"),
    ],
)
def test_a_small_file_builds_no_large_recurrent_network(tmp_path: Path, settings: dict[str, int], message: str) -> None:
    tiny_rl2().save_checkpoint(tmp_path / "model")
    saved = {name: (tmp_path / "model" / name).read_bytes() for name in (TENSORS, CONFIG)}

    def change(config: dict[str, Any]) -> None:
        config["policy_kwargs"].update(settings)
        config["progress"].update(n_steps=1000, n_envs=1000)

    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write_signed(tmp_path / "case", saved, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"policy/log_std": t["policy/log_std"].double()}), "float32 of shape"),
        (lambda t: t.update({"policy/log_std": th.zeros(2, 1)}), r"of shape \(2,\)"),
        (lambda t: t.pop("policy/log_std"), r"missing \['policy/log_std'\]"),
        (lambda t: t.update({"policy/__class__": th.zeros(1)}), "not known .*__class__"),
        (lambda t: t.update({"policy.optimizer/99/step": th.zeros(())}), "state of one of"),
        (lambda t: t.update({"policy.optimizer/0/step": th.zeros(())}), "of every parameter"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, th.Tensor]], Any], message: str
) -> None:
    from sb3_maesn.common.checkpoint.model_state import read_state

    model = tiny()
    model.save_checkpoint(tmp_path / "model")
    tensors, _ = read_state(model)
    change(tensors)
    members = {TENSORS: dump_tensors(tensors), CONFIG: (tmp_path / "model" / CONFIG).read_bytes()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write_signed(tmp_path / "case", members, lambda _: None))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, saved: dict[str, bytes]) -> None:
    for bad in (np.nan, np.inf):
        members = {**saved, TENSORS: saved[TENSORS][:-4] + np.float32(bad).tobytes()}
        with pytest.raises(CheckpointError, match="expected finite numbers"):
            load_checkpoint(write_signed(tmp_path / "case", members, lambda _: None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: zipped({f"../{name}": data for name, data in m.items()}), "expected model.safetensors and config"),
        (lambda m: zipped({**m, "/etc/evil": b""}), "expected model.safetensors and config"),
        (lambda m: zipped({CONFIG: m[CONFIG]}), "expected model.safetensors and config"),
        (lambda m: zipped(m, external_attr=0o120777 << 16), "a symbolic link"),
        (lambda m: zipped(m, compress_type=zipfile.ZIP_BZIP2), "stored or deflated"),
        (lambda m: zipped({**m, CONFIG: b" " * 2**24}, compress_type=zipfile.ZIP_DEFLATED), "expected at most"),
        (lambda m: zipped({**m, TENSORS: bytes(2**25)}, compress_type=zipfile.ZIP_DEFLATED), "expected at most"),
        (lambda m: zipped({**m, **{f"{i}": b"" for i in range(500)}}), "a table of contents of"),
        (lambda m: zipped(m) + b"trailing", "without a comment"),
        (lambda m: zipped(m)[:-1], "whole zip file"),
        (lambda m: b"", "fewer bytes"),
    ],
)
def test_zip_files_that_are_not_ours_are_refused(
    tmp_path: Path, saved: dict[str, bytes], make: Callable[[dict[str, bytes]], bytes], message: str
) -> None:
    path = tmp_path / "case.zip"
    path.write_bytes(make(saved))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_twice_in_a_zip_is_refused(tmp_path: Path, saved: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in (TENSORS, CONFIG):
            archive.writestr(name, saved[name])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(CONFIG, saved[CONFIG])
    (tmp_path / "case.zip").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors and config\.json, got"):
        load_checkpoint(tmp_path / "case.zip")


def test_a_zip_made_by_hand_loads(tmp_path: Path, saved: dict[str, bytes]) -> None:
    (tmp_path / "mine.zip").write_bytes(zipped(saved, compress_type=zipfile.ZIP_DEFLATED))
    assert MAESN.load_checkpoint(tmp_path / "mine.zip").seed == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [("/dev/zero", "regular file"), ("nowhere", "cannot read"), (CONFIG, "cannot read"), ("..", "cannot read|regular")],
)
def test_links_to_what_is_no_file_are_refused_at_once(
    tmp_path: Path, saved: dict[str, bytes], target: str, message: str
) -> None:
    folder = write(tmp_path / "case", {TENSORS: saved[TENSORS]})
    (folder / CONFIG).symlink_to(target)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_named_pipe_does_not_hang(tmp_path: Path, saved: dict[str, bytes]) -> None:
    folder = write(tmp_path / "case", {TENSORS: saved[TENSORS]})
    os.mkfifo(folder / CONFIG)
    os.mkfifo(tmp_path / "pipe.zip")
    for path in (folder, tmp_path / "pipe.zip"):
        with pytest.raises(CheckpointError, match="regular file"):
            load_checkpoint(path)


def test_a_file_too_large_is_refused_unread(tmp_path: Path, saved: dict[str, bytes]) -> None:
    folder = write(tmp_path / "case", saved)
    os.truncate(folder / TENSORS, 2**40)  # takes no room on the disk, and would take all of the memory
    with pytest.raises(CheckpointError, match="expected at most 268435456 bytes, got 1099511627776"):
        load_checkpoint(folder)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors: No such file"):
        load_checkpoint(tmp_path)


def test_a_hyperparameter_newer_than_the_file_takes_its_default(tmp_path: Path) -> None:
    tiny(gamma=0.5).save_checkpoint(tmp_path / "model")
    members = {name: (tmp_path / "model" / name).read_bytes() for name in (TENSORS, CONFIG)}
    older = write_signed(tmp_path / "older", members, lambda c: c["hyperparameters"].pop("gamma"))
    assert MAESN.load_checkpoint(older).gamma == tiny().gamma
