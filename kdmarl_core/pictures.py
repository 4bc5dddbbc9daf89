"""Pictures of an episode: an animation and a still, drawn from recorded scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from kdmarl_core.files import atomic_file
from kdmarl_core.tasks import Entity

Scene = Sequence[Entity]
COLOURS = ("#3366cc", "#dd8800", "#229944", "#aa3377", "#66aabb", "#bb5533")
LANDMARK, ENEMY, DEAD = "#444444", "#cc2222", "#bbbbbb"
FRAMES_PER_SECOND = 8


def draw_still(scenes: Sequence[Scene], title: str, path: Path) -> None:
    """The last moment of an episode with each robot's path to it, as PNG."""
    figure, axes = _canvas(scenes, title)
    for i, name in enumerate(_agents(scenes[0])):
        path_m = [(e.x_m, e.y_m) for scene in scenes for e in scene if e.name == name]
        axes.plot(*zip(*path_m, strict=True), color=COLOURS[i % len(COLOURS)], linewidth=1.5)
        axes.plot(*path_m[0], marker="o", markersize=4, color=COLOURS[i % len(COLOURS)])
    _draw(axes, scenes[-1])
    save_png(figure, path)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure; the file appears complete or not at all."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def animate(scenes: Sequence[Scene], title: str, path: Path) -> None:
    """The whole episode, as an animated GIF; the file appears complete or not at all."""
    figure, axes = _canvas(scenes, title)

    def frame(index: int) -> list[Circle]:
        for patch in list(axes.patches):
            patch.remove()
        axes.set_xlabel(f"x, y in metres; step {index}")
        return _draw(axes, scenes[index])

    animation = FuncAnimation(figure, frame, frames=len(scenes), blit=False)
    with atomic_file(path) as temporary:
        animation.save(temporary, writer=PillowWriter(fps=FRAMES_PER_SECOND), dpi=72)


def _canvas(scenes: Sequence[Scene], title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    reach_m = max(max(abs(e.x_m), abs(e.y_m)) + e.radius_m for scene in scenes for e in scene)
    axes.set(xlim=(-reach_m, reach_m), ylim=(-reach_m, reach_m), aspect="equal", title=title)
    enemies = "; red discs: enemies" if any(e.kind == "enemy" for e in scenes[0]) else ""
    axes.set_xlabel(f"x, y in metres; lines: paths of robots; dark discs: landmarks{enemies}")
    axes.grid(visible=True, color="#eeeeee")
    return figure, axes


def _draw(axes: Axes, scene: Scene) -> list[Circle]:
    agents = _agents(scene)
    patches: list[Circle] = []
    for entity in sorted(scene, key=lambda e: e.kind):
        patch = Circle(
            (entity.x_m, entity.y_m),
            entity.radius_m,
            facecolor=_colour(entity, agents),
            alpha=0.75,
            zorder=3,
        )
        axes.add_patch(patch)
        patches.append(patch)
    return patches


def _colour(entity: Entity, agents: Sequence[str]) -> str:
    if entity.health <= 0:
        return DEAD
    if entity.kind == "agent":
        return COLOURS[agents.index(entity.name) % len(COLOURS)]
    return ENEMY if entity.kind == "enemy" else LANDMARK


def _agents(scene: Scene) -> list[str]:
    return [entity.name for entity in scene if entity.kind == "agent"]
