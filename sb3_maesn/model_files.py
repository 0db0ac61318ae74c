"""Model files as the user names them: where a model is, and the environment that its name tells."""

from pathlib import Path

from sb3_maesn.common.checkpoint.archive import is_checkpoint
from sb3_maesn.common.checkpoint.pretrained import pretrained_folders
from sb3_maesn.common.suggestions import did_you_mean
from sb3_maesn.config import ConfigError
from sb3_maesn.envs import FAMILIES
from sb3_maesn.tasks import sparse_variant


def find_model_file(name: str | Path) -> Path:
    """Find a model: a file of SB3's ``save``, a checkpoint, or a pretrained model of the package.

    :param name: path, with or without ``.zip``, or name of a pretrained model
    :return: path of the file, or of the folder of a checkpoint
    :raises ConfigError: if there is no such model; the message lists the models in a folder, or suggests similar names
        of pretrained models
    """
    for candidate in (Path(name), Path(f"{name}.zip")):
        if candidate.is_file() or is_checkpoint(candidate):
            return candidate
    shipped = pretrained_folders()
    if str(name) in shipped:
        return shipped[str(name)]
    if Path(name).is_dir():
        models = [str(path) for path in sorted(Path(name).iterdir()) if path.suffix == ".zip" or is_checkpoint(path)]
        advice = f"name one of its models: {', '.join(models)}" if models else "it holds no model"
        raise ConfigError(f"{name} is a folder, not a model; {advice}")
    raise ConfigError(f"there is no model file {name}, nor a pretrained model{did_you_mean(str(name), shipped)}")


def guess_test_env(model: str | Path) -> str:
    """Guess from a model's name the environment to test it on.

    :param model: model file or name of a pretrained model
    :return: id of the sparse variant of the family that the file name, or else the nearest parent folder, contains
    :raises ConfigError: if no part of the path contains the id of a family
    """
    for part in reversed(Path(model).parts):
        named = [env_id for env_id in FAMILIES if env_id in part]
        if named:
            return sparse_variant(max(named, key=len))
    raise ConfigError(f"{model} does not tell its environment: say it with --env")
