"""What RViz and Foxglove are given to draw."""

import math

import pytest
from rclpy.time import Time
from visualization_msgs.msg import Marker

from kdmarl_core.tasks import Entity, make_task
from kdmarl_ros.markers import (
    ACTIONS,
    ARROW_RADII,
    DEAD,
    ENEMIES,
    FRAME,
    LANDMARK,
    LANDMARKS,
    NAMES,
    POLICY,
    REACH,
    ROBOTS,
    SAFE,
    Choice,
    scene_markers,
)

NOW = Time(seconds=3)
ROBOT = Entity("agent_0", "agent", 1.0, -2.0, 0.1)
SEEING = Entity("ally_0", "agent", 0.0, 0.0, 0.5, sight_m=9.0, health=0.5)
SHOT = Entity("ally_1", "agent", 5.0, 0.0, 0.5, sight_m=9.0, health=0.0)
NEAR = Entity("enemy_0", "enemy", 3.0, 4.0, 0.5)
FAR = Entity("enemy_1", "enemy", -3.0, 0.0, 0.5, health=0.0)


def picture(scene, *choices):
    """Markers by namespace and number."""
    markers = scene_markers(scene, choices, NOW).markers
    found = {(marker.ns, marker.id): marker for marker in markers}
    assert len(found) == len(markers)  # or one would hide the other
    for marker in markers:
        assert (marker.header.frame_id, marker.header.stamp.sec) == (FRAME, 3)
    return found


def colour(marker):
    return pytest.approx((marker.color.r, marker.color.g, marker.color.b, marker.color.a))


def ends(marker):
    return [(point.x, point.y) for point in marker.points]


@pytest.mark.parametrize(
    ("action", "x", "y"),
    [
        ("left", -1, 0),
        ("right", 1, 0),
        ("down", 0, -1),
        ("up", 0, 1),
        ("west", -1, 0),
        ("east", 1, 0),
        ("south", 0, -1),
        ("north", 0, 1),
    ],
)
def test_a_move_is_an_arrow(action, x, y):
    arrow = picture([ROBOT], Choice("robot_0", action, POLICY))[ACTIONS, 0]
    assert (arrow.type, arrow.action) == (Marker.ARROW, Marker.ADD)
    length = 0.1 * ARROW_RADII
    assert ends(arrow) == [(1.0, -2.0), pytest.approx((1.0 + x * length, -2.0 + y * length))]


@pytest.mark.parametrize("action", ["stay", "stop", "say_1", "attack_7", "attack_", "attack_x"])
def test_what_goes_nowhere_takes_the_arrow_away(action):
    arrow = picture([SEEING, NEAR], Choice("robot_0", action, POLICY))[ACTIONS, 0]
    assert arrow.action == Marker.DELETE


def test_an_attack_points_at_its_enemy():
    scene = [SEEING, NEAR, FAR]
    for action, target in (("attack_0", (3.0, 4.0)), ("attack_1", (-3.0, 0.0))):
        arrow = picture(scene, Choice("robot_0", action, POLICY))[ACTIONS, 0]
        assert ends(arrow) == [(0.0, 0.0), target]


def test_reach_is_drawn_where_a_task_limits_it():
    drawn = picture([SEEING, ROBOT], *(Choice(f"robot_{i}", "stop", POLICY) for i in (0, 1)))
    reach = drawn[REACH, 0]
    assert reach.action == Marker.ADD
    assert all(math.hypot(*point) == pytest.approx(9.0) for point in ends(reach))
    assert ends(reach)[0] == pytest.approx(ends(reach)[-1])
    assert drawn[REACH, 1].action == Marker.DELETE


def test_status_and_health_are_colours_and_heights():
    drawn = picture(
        [SEEING, SHOT, ROBOT, NEAR, FAR, Entity("goal", "landmark", 0.0, 0.0, 0.05)],
        Choice("robot_0", "stop", POLICY),
        Choice("robot_1", "north", POLICY),
        Choice("robot_2", "up", SAFE),
    )
    assert colour(drawn[ROBOTS, 0]) == POLICY
    assert colour(drawn[ROBOTS, 1]) == DEAD
    assert colour(drawn[ROBOTS, 2]) == SAFE
    assert colour(drawn[ENEMIES, 4]) == DEAD
    assert colour(drawn[ENEMIES, 3]) != DEAD
    assert colour(drawn[LANDMARKS, 5]) == LANDMARK
    assert drawn[ROBOTS, 0].scale.z == pytest.approx(drawn[ROBOTS, 2].scale.z / 2)
    # The dead neither act nor see.
    assert drawn[ACTIONS, 1].action == drawn[REACH, 1].action == Marker.DELETE
    assert drawn[NAMES, 1].text == "robot_1"
    assert drawn[NAMES, 2].text == "robot_2: up"


def test_each_picture_replaces_the_one_before():
    """The same markers in each, so that nothing stays behind."""
    alive = picture([SEEING, NEAR], Choice("robot_0", "attack_0", POLICY))
    dead = picture([SEEING._replace(health=0.0), NEAR], Choice("robot_0", "stop", SAFE))
    assert alive.keys() == dead.keys()


@pytest.mark.parametrize("name", ["mpe/simple_spread", "mpe/simple_speaker_listener", "smax/3m"])
def test_tasks_can_be_drawn(name):
    task = make_task(name)
    env = task.make_reference()
    env.reset(0)
    scene = env.scene()
    agents = task.spec.agents
    choices = [Choice(f"robot_{i}", a.actions[-1], POLICY) for i, a in enumerate(agents)]
    drawn = picture(scene, *choices)
    assert sum(space == ROBOTS for space, _ in drawn) == len(agents)
    limited = [drawn[REACH, i].action == Marker.ADD for i in range(len(agents))]
    assert limited == [name.startswith("smax/")] * len(agents)
    assert all(entity.health == 1.0 for entity in scene)
