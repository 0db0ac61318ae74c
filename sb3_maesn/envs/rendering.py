"""Renderers that draw frames of a member, and a window that shows them."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_maesn.envs.task_family import Array

if TYPE_CHECKING:
    import mujoco

Frame = NDArray[np.uint8]
GOAL_COLOUR = (0.1, 0.65, 0.35)


class Marker(NamedTuple):
    """A disc on the floor that marks a goal.

    :param position: centre in the world frame in metres (3,)
    :param radius: radius in metres
    :param colour: red, green and blue in [0, 1]
    """

    position: Array
    radius: float
    colour: tuple[float, float, float] = GOAL_COLOUR


class MujocoSceneRenderer:
    """A renderer of a MuJoCo model, seen from its camera ``view``, with a marker on the floor for the goal.

    :param model: compiled model
    :param marker: function from a task to the marker of its goal
    :param width: frame width in pixels
    :param height: frame height in pixels
    :raises RuntimeError: if no OpenGL context can be opened
    """

    def __init__(self, model: "mujoco.MjModel", marker: Callable[[Array], Marker], width: int, height: int) -> None:
        import mujoco

        self._marker = marker
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # each OpenGL backend raises its own kind of exception
            raise RuntimeError(
                f"MuJoCo could not open an OpenGL context ({error}). Without a display, set MUJOCO_GL=egl (or osmesa) "
                "before Python starts; EGL needs Debian's libegl1."
            ) from error
        flags = self._renderer.scene.flags
        # shadows and reflections take most of a frame's time on a CPU
        flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = 0
        flags[int(mujoco.mjtRndFlag.mjRND_REFLECTION)] = 0

    def render(self, snapshot: "mujoco.MjData", task: Array) -> Frame:
        """Draw the scene and the marker, see ``Renderer.render``."""
        self._renderer.update_scene(snapshot, camera="view")
        marker = self._marker(task)
        self._add_disc(marker, 0.002, alpha=0.35)
        self._add_disc(marker._replace(radius=marker.radius / 10), 0.004, alpha=1.0)
        return np.array(self._renderer.render())

    def _add_disc(self, marker: Marker, height: float, alpha: float) -> None:
        """Add a flat disc to the scene, ``height`` metres above the floor."""
        import mujoco

        scene = self._renderer.scene
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            mujoco.mjtGeom.mjGEOM_CYLINDER,
            np.array([marker.radius, 0.001, 0.0]),
            marker.position + np.array([0.0, 0.0, height]),
            np.eye(3).ravel(),
            np.array([*marker.colour, alpha], dtype=np.float32),
        )
        scene.ngeom += 1

    def close(self) -> None:
        """Release the OpenGL context, see ``Renderer.close``."""
        self._renderer.close()


class PlaneRenderer:
    """A renderer of a point in the plane, in plain NumPy.

    :param width: frame width in pixels
    :param height: frame height in pixels
    :param goal_radius: radius around the goal within which a task is solved, in the units of the plane
    """

    def __init__(self, width: int, height: int, goal_radius: float) -> None:
        self._goal_radius = goal_radius
        scale = min(width / 3.6, height / 2.4)  # pixels per unit: x in [-1.8, 1.8], y in [-0.7, 1.7] at 3:2
        self._pixel = 1.0 / scale
        self._x = (np.arange(width) - (width - 1) / 2) * self._pixel
        self._y = 0.5 - (np.arange(height) - (height - 1) / 2) * self._pixel
        radius = self._distance(0.0, 0.0)
        self._background = np.full((height, width, 3), (0.94, 0.95, 0.96))
        ring = np.abs(radius - 1.0) * np.where(self._y[:, None] >= 0.0, 1.0, np.inf)
        self._blend(self._background, ring - 0.008, (0.75, 0.78, 0.82), 1.0)
        self._blend(self._background, radius - 0.025, (0.6, 0.63, 0.67), 1.0)

    def _distance(self, x: float, y: float) -> Array:
        """Compute the distance of every pixel from a point (height, width)."""
        return np.hypot(self._x[None, :] - x, self._y[:, None] - y)

    def _blend(self, image: Array, outside: Array, colour: tuple[float, float, float], alpha: float) -> None:
        """Paint the pixels where ``outside``, a signed distance, is negative, with an antialiased edge."""
        cover = alpha * np.clip(0.5 - outside / self._pixel, 0.0, 1.0)[..., None]
        image += cover * (np.array(colour) - image)

    def render(self, snapshot: Array, task: Array) -> Frame:
        """Draw the goal and the point, see ``Renderer.render``."""
        image = self._background.copy()
        to_goal = self._distance(task[0], task[1])
        self._blend(image, to_goal - self._goal_radius, GOAL_COLOUR, 0.35)
        self._blend(image, to_goal - 0.03, GOAL_COLOUR, 1.0)
        self._blend(image, self._distance(snapshot[0], snapshot[1]) - 0.06, (0.16, 0.42, 0.7), 1.0)
        return (255 * image).round().astype(np.uint8)

    def close(self) -> None:
        """Do nothing, since there is nothing to release."""


class BarRenderer:
    """A renderer of a bandit: one bar for each arm's probability, the bar of the arm pulled last in colour.

    :param width: frame width in pixels
    :param height: frame height in pixels
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        shade = np.linspace(0.96, 0.88, height)[:, None, None]
        self._background = np.broadcast_to(shade, (height, width, 3))

    def render(self, snapshot: int, task: Array) -> Frame:
        """Draw the bars, see ``Renderer.render``."""
        image = self._background.copy()
        for arm, probability in enumerate(task):
            left = round((0.15 + 0.4 * arm) * self._width)
            top = round((0.95 - 0.9 * float(probability)) * self._height)
            colour = np.array(GOAL_COLOUR) if arm == snapshot else np.array((0.6, 0.63, 0.67))
            image[top : round(0.95 * self._height), left : left + round(0.3 * self._width)] = colour
        return (255 * image).round().astype(np.uint8)

    def close(self) -> None:
        """Do nothing, since there is nothing to release."""


class Window:
    """A window that shows frames on the screen with Python's own tkinter.

    :param title: title of the window
    :param fps: upper limit of the frame rate in frames per second
    :raises RuntimeError: if there is no tkinter or no display
    """

    def __init__(self, title: str, fps: float) -> None:
        try:
            import tkinter

            self._root: Any = tkinter.Tk()
        except Exception as error:  # ImportError, or TclError, which only exists where tkinter does
            raise RuntimeError(
                f"render_mode='human' needs a display and Python's tkinter ({error}); use 'rgb_array' instead"
            ) from error
        self._tkinter = tkinter
        self._root.title(title)
        self._label: Any = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._period = 1.0 / fps
        self._next = time.monotonic()

    def show(self, frame: Frame) -> None:
        """Show a frame, after waiting as long as the frame rate demands.

        :param frame: an RGB image (height, width, 3)
        """
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + self._period
        height, width, _ = frame.shape
        image = self._tkinter.PhotoImage(data=b"P6 %d %d 255\n" % (width, height) + frame.tobytes(), format="PPM")
        self._label.configure(image=image)
        self._label.image = image  # tkinter does not keep a reference of its own
        self._root.update()

    def close(self) -> None:
        """Close the window."""
        self._root.destroy()
