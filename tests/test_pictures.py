"""Pictures of episodes."""

from matplotlib.colors import to_hex
from PIL import Image

from kdmarl_core.pictures import DEAD, ENEMY, LANDMARK, _canvas, _draw, animate, draw_still
from kdmarl_core.tasks import Entity, make_task

SCENE = [
    Entity("agent_0", "agent", 0.0, 0.0, 0.1),
    Entity("agent_1", "agent", 0.5, 0.0, 0.1, health=0.0),
    Entity("adversary_0", "enemy", 1.0, 0.0, 0.1),
    Entity("landmark_0", "landmark", -1.0, 0.0, 0.1),
]


def test_robots_enemies_landmarks_and_the_dead_have_colours_of_their_own():
    _, axes = _canvas([SCENE], "")
    colours = {patch.center[0]: to_hex(patch.get_facecolor()) for patch in _draw(axes, SCENE)}
    assert (colours[0.5], colours[1.0], colours[-1.0]) == (DEAD, ENEMY, LANDMARK)
    assert len(set(colours.values())) == 4
    assert "enemies" in axes.get_xlabel()


def test_an_adversary_is_drawn_as_an_enemy(tmp_path):
    env = make_task("mpe/simple_adversary").make_reference()
    env.reset(0)
    scenes = [env.scene()]
    assert [entity.kind for entity in scenes[0]].count("enemy") == 1
    env.step([0, 0])
    scenes.append(env.scene())
    draw_still(scenes, "adversary", tmp_path / "still.png")
    animate(scenes, "adversary", tmp_path / "all.gif")
    assert Image.open(tmp_path / "still.png").size > (100, 100)
    assert Image.open(tmp_path / "all.gif").n_frames == 2
