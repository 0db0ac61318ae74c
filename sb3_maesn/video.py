"""Videos of agents that play a task, several of them side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_maesn.config import ConfigError
from sb3_maesn.playing import make_stage, play

Frames = NDArray[np.uint8]  # (T, height, width, 3)

FPS = 25
GAP, STRIP = 8, 32  # width of the space between panels and height of the title above them, in pixels
PAPER, INK = 255, (51, 51, 51)


def film(
    model: OnPolicyAlgorithm, env_id: str, task: Any, n_timesteps: int, deterministic: bool = True, seed: int = 0
) -> Frames:
    """Play and render the frames of a video in real time.

    :param model: model that chooses the actions
    :param env_id: environment id
    :param task: task, as ``set_task`` takes it; None if the environment has no tasks
    :param n_timesteps: number of steps
    :param deterministic: whether to take the most likely actions instead of sampling them
    :param seed: seed of the environment and of the model's random draws
    :return: about ``FPS`` frames per second of simulated time (T, height, width, 3)
    """
    env = make_stage(env_id, task, "rgb_array")
    every = steps_per_frame(env.metadata.get("render_fps"))
    frames: list[Any] = []
    n_seen = 0

    def watch() -> None:
        nonlocal n_seen
        if n_seen % every == 0:
            frames.append(env.render())
        n_seen += 1

    try:
        play(model, env, n_timesteps, deterministic=deterministic, seed=seed, watch=watch)
    finally:
        env.close()
    return np.stack(frames)


def steps_per_frame(render_fps: float | None) -> int:
    """Choose the number of steps per frame of the video.

    :param render_fps: steps per second in real time, None if the environment does not tell
    :return: number of steps, at least 1
    """
    return max(1, round((render_fps or FPS) / FPS))


def side_by_side(panels: Sequence[Frames], titles: Sequence[str]) -> Frames:
    """Put videos side by side, each below its title; shorter ones stay at their last frame.

    :param panels: videos of equal height (T_i, height, width_i, 3)
    :param titles: titles of the videos
    :return: video (max T_i, height + ``STRIP``, sum of width_i and gaps, 3)
    """
    n_frames, height = max(len(panel) for panel in panels), panels[0].shape[1]
    strips = [_title(panel.shape[2], title) for panel, title in zip(panels, titles, strict=True)]
    columns = []
    for panel, strip in zip(panels, strips, strict=True):
        whole = panel[np.minimum(np.arange(n_frames), len(panel) - 1)]
        heads = np.broadcast_to(strip, (n_frames, *strip.shape))
        columns += [
            np.concatenate([heads, whole], axis=1),
            np.full((n_frames, height + STRIP, GAP, 3), PAPER, np.uint8),
        ]
    return np.concatenate(columns[:-1], axis=2)


def _title(width: int, text: str) -> NDArray[np.uint8]:
    """Draw a line of text (STRIP, width, 3)."""
    image, draw, font = _pillow()
    strip = image.new("RGB", (width, STRIP), (PAPER, PAPER, PAPER))
    draw.Draw(strip).text((width / 2, STRIP / 2), text, fill=INK, font=font.load_default(STRIP // 2), anchor="mm")
    return np.asarray(strip)


def check_writers() -> None:
    """Check that videos can be written, before one is filmed.

    :raises ConfigError: if the extra ``video`` is not installed
    """
    _pillow()
    _ffmpeg()


def write_video(path: str | Path, frames: Frames) -> None:
    """Write a video as MP4 (H.264), or as GIF at half the width and height, depending on the file's ending.

    :param path: file ending in ``.mp4`` or ``.gif``; its folder is created if missing
    :param frames: frames (T, height, width, 3)
    :raises ConfigError: if the file has another ending, or the extra ``video`` is not installed
    """
    path = Path(path)
    writers = {".mp4": _write_mp4, ".gif": _write_gif}
    if path.suffix not in writers:
        raise ConfigError(f"a video is written as {' or '.join(writers)}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writers[path.suffix](path, frames)


def _write_mp4(path: Path, frames: Frames) -> None:
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # H.264 halves the resolution of colours
    size = even.shape[2], even.shape[1]
    writer = _ffmpeg().write_frames(str(path), size, fps=FPS, quality=8, macro_block_size=2)
    writer.send(None)
    for frame in even:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def _write_gif(path: Path, frames: Frames) -> None:
    image, _, _ = _pillow()
    half = frames.shape[2] // 2, frames.shape[1] // 2
    pictures = [image.fromarray(frame).resize(half).quantize(96, method=image.Quantize.MAXCOVERAGE) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0)


def _pillow() -> tuple[Any, Any, Any]:
    """Import Pillow's modules for images, drawing and fonts."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ConfigError("a video needs Pillow: pip install 'sb3_maesn[video]'") from error
    return Image, ImageDraw, ImageFont


def _ffmpeg() -> Any:
    """Import imageio-ffmpeg."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ConfigError("an MP4 needs imageio-ffmpeg: pip install 'sb3_maesn[video]'") from error
    return imageio_ffmpeg
