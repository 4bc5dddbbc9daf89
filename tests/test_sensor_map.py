"""Standard messages as blocks and actions as commands, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from geometry_msgs.msg import Pose, PoseArray
from helpers import changed, make_manifest, name_of_case, renamed, write_yaml
from nav_msgs.msg import Odometry
from sensor_msgs.msg import JointState, LaserScan
from std_msgs.msg import Float32MultiArray

from kdmarl_core.bundle import BlockEntry
from kdmarl_ros.sensor_map import Reading, load_map

ODOMETRY = "nav_msgs/msg/Odometry"
PLACE = ["pose.pose.position.x", "pose.pose.position.y"]
TIMEOUT_S = 0.5
COMMAND = {
    "topic": "cmd_vel",
    "type": "geometry_msgs/msg/Twist",
    "fields": ["linear.x", "linear.y"],
    "actions": {
        "stay": [0.0, 0.0],
        "left": [-1.0, 0.0],
        "right": [1.0, 0.0],
        "down": [0.0, -1.0],
        "up": [0.0, 1.0],
    },
    "velocity": 1.0,
    "acceleration": 2.0,
    "rate_hz": 20.0,
}
BLOCKS = {
    "velocity": {
        "topic": "odom",
        "type": ODOMETRY,
        "fields": ["twist.twist.linear.x", "twist.twist.linear.y"],
        "turn": {"by": "pose.pose.orientation", "into": "world"},
    },
    "landmarks": {
        "topic": "odom",
        "type": ODOMETRY,
        "fields": PLACE,
        "points": [[3.0, 5.0], [0.0, 0.0]],
    },
    "others": {
        "topic": "odom",
        "type": ODOMETRY,
        "fields": PLACE,
        "peers": ["robot_0", "robot_1", "robot_2"],
    },
}
SIZES = {"velocity": 2, "landmarks": 4, "others": 4}
MAP = {"blocks": BLOCKS, "command": COMMAND}
STAY, LEFT, RIGHT, DOWN, UP = range(5)


@pytest.fixture
def load(tmp_path):
    """Loads a document as the map of robot_1, for a bundle with blocks of these sizes."""

    def run(document, sizes=SIZES, namespace="/robot_1"):
        path = write_yaml(tmp_path / "map.yaml", document)
        manifest = make_manifest(sizes.items())
        return load_map(path, manifest, namespace, TIMEOUT_S)

    return run


@pytest.fixture
def load_block(load):
    """Loads a map of one block of `size` values; returns what a message gives for it."""

    def run(size, **entry):
        sensor_map = load({"blocks": {"sense": entry}, "command": COMMAND}, {"sense": size})

        def read(message):
            [reading] = sensor_map.take(0, message, 1.0)
            return list(reading.values)

        return read

    return run


def odometry(x=0.0, y=0.0, heading=0.0, forwards=0.0):
    message = Odometry()
    message.pose.pose.position.x, message.pose.pose.position.y = x, y
    message.pose.pose.orientation.z = math.sin(heading / 2)
    message.pose.pose.orientation.w = math.cos(heading / 2)
    message.twist.twist.linear.x = forwards
    return message


def take(sensor_map, topic, message, now_s, age_s=0.0):
    """What a message on a topic brings up to date, by block index."""
    [index] = [i for i, source in enumerate(sensor_map.sources) if source.topic == topic]
    return {reading.block: reading for reading in sensor_map.take(index, message, now_s, age_s)}


# Blocks


def test_each_topic_is_subscribed_once_with_its_type(load):
    sensor_map = load(MAP)
    assert sensor_map.sources == (
        ("odom", Odometry),
        ("/robot_0/odom", Odometry),
        ("/robot_2/odom", Odometry),
    )


def test_peers_are_looked_for_beside_the_robot(load):
    topics = [source.topic for source in load(MAP, namespace="/site_a/robot_2").sources]
    assert topics == ["odom", "/site_a/robot_0/odom", "/site_a/robot_1/odom"]


def test_own_fields_points_and_peers(load):
    sensor_map = load(MAP)
    assert take(sensor_map, "/robot_0/odom", odometry(2.0, 0.0), 9.9) == {}
    assert take(sensor_map, "/robot_2/odom", odometry(-1.0, 7.0), 9.8) == {}
    readings = take(sensor_map, "odom", odometry(1.0, 2.0, math.pi / 2, forwards=0.5), 10.0)
    assert readings[0].values == pytest.approx([0.0, 0.5], abs=1e-6)  # turned into the world
    assert readings[1] == Reading(1, [2.0, 3.0, -1.0, -2.0], 10.0)
    assert readings[2] == Reading(2, [1.0, -2.0, -2.0, 5.0], 9.8)  # as old as the oldest part


def test_without_a_peer_the_block_is_missing_and_a_silent_one_makes_it_old(load):
    sensor_map = load(MAP)
    take(sensor_map, "/robot_0/odom", odometry(), 1.0)
    assert set(take(sensor_map, "odom", odometry(), 1.0)) == {0, 1}
    take(sensor_map, "/robot_2/odom", odometry(), 5.0)
    assert take(sensor_map, "odom", odometry(), 5.0)[2].measured_s == 1.0


def test_a_peer_of_before_a_jump_of_time_is_forgotten(load):
    sensor_map = load(MAP)
    for topic in ("/robot_0/odom", "/robot_2/odom"):
        take(sensor_map, topic, odometry(1.0, 2.0), 1.0)
    before = take(sensor_map, "odom", odometry(), 1.0)
    sensor_map.forget()
    after = take(sensor_map, "odom", odometry(), 1.0)
    assert len(after) == len(before) - 1


def test_a_declared_value_stands_for_a_lost_peer(load):
    sensor_map = load(changed(MAP, "blocks.others.lost_peer", [9.0, -9.0]))
    assert take(sensor_map, "odom", odometry(), 1.0)[2].values == [9.0, -9.0, 9.0, -9.0]
    take(sensor_map, "/robot_0/odom", odometry(1.0, 1.0), 1.0)
    reading = take(sensor_map, "odom", odometry(), 1.0 + TIMEOUT_S)[2]
    assert reading == Reading(2, [1.0, 1.0, 9.0, -9.0], 1.0)
    reading = take(sensor_map, "odom", odometry(), 1.1 + TIMEOUT_S)[2]
    assert reading == Reading(2, [9.0, -9.0, 9.0, -9.0], 1.1 + TIMEOUT_S)


@pytest.mark.parametrize("ahead_s", [0.5, 10.0])
def test_a_peer_whose_clock_is_ahead_is_lost_when_it_falls_silent(load, ahead_s):
    """As much ahead as clocks may be, it counts as new; further ahead, it is no measurement."""
    sensor_map = load(changed(MAP, "blocks.others.lost_peer", [9.0, -9.0]))
    take(sensor_map, "/robot_0/odom", odometry(1.0, 1.0), 1.0, -ahead_s)
    heard = [1.0, 1.0] if ahead_s < 1.0 else [9.0, -9.0]
    reading = take(sensor_map, "odom", odometry(), 1.0)[2]
    assert reading == Reading(2, [*heard, 9.0, -9.0], 1.0)
    reading = take(sensor_map, "odom", odometry(), 1.1 + TIMEOUT_S)[2]
    assert reading.values == [9.0, -9.0, 9.0, -9.0]
    # What it measures itself says when that was: it is refused further on.
    assert take(sensor_map, "odom", odometry(), 5.0, -ahead_s)[1].measured_s == 5.0 + ahead_s
    sensor_map = load(MAP)
    take(sensor_map, "/robot_0/odom", odometry(), 1.0, -ahead_s)
    take(sensor_map, "/robot_2/odom", odometry(), 1.0)
    measured_s = take(sensor_map, "odom", odometry(), 1.0)[2].measured_s
    assert measured_s == (1.0 if ahead_s < 1.0 else -math.inf)


def test_scale_then_offset_then_clip(load_block):
    read = load_block(
        2, topic="odom", type=ODOMETRY, fields=PLACE, scale=[2.0, -1.0], offset=1.0, clip=[-4, 4]
    )
    assert read(odometry(1.0, 3.0)) == [3.0, -2.0]
    assert read(odometry(5.0, 9.0)) == [4.0, -4.0]


def test_relative_positions_in_the_robots_own_axes(load_block):
    read = load_block(
        2, topic="odom", type=ODOMETRY, fields=PLACE, points=[[0.0, 2.0]],
        turn={"by": "pose.pose.orientation", "into": "body"},
    )  # fmt: skip
    assert read(odometry(0.0, 0.0, math.pi / 2)) == pytest.approx([2.0, 0.0], abs=1e-6)  # ahead


def test_an_orientation_that_was_never_set_is_no_heading(load_block):
    read = load_block(2, topic="odom", type=ODOMETRY, **{
        key: BLOCKS["velocity"][key] for key in ("fields", "turn")
    })  # fmt: skip
    message = odometry(forwards=1.0)
    message.pose.pose.orientation.w = 0.0
    assert not np.isfinite(read(message)).any()


def test_an_orientation_that_is_not_quite_of_unit_length_is_the_same_heading(load_block):
    read = load_block(2, topic="odom", type=ODOMETRY, **{
        key: BLOCKS["velocity"][key] for key in ("fields", "turn")
    })  # fmt: skip
    message = odometry(heading=math.radians(120), forwards=1.0)
    exact = read(message)
    message.pose.pose.orientation.z *= 0.955  # squared length 0.91
    message.pose.pose.orientation.w *= 0.955
    assert read(message) == pytest.approx(exact, abs=1e-6)


def test_ranges_become_the_nearest_of_each_sector(load_block):
    read = load_block(
        3, topic="scan", type="sensor_msgs/msg/LaserScan", fields=["ranges"], resample=3,
        clip=[0.0, 6.0],
    )  # fmt: skip
    nan, inf = math.nan, math.inf
    scan = LaserScan(range_min=0.5, ranges=[5.0, 1.0, 9.0, 2.0, inf, 0.0, inf, nan, inf])
    assert read(scan) == [1.0, 2.0, 6.0]  # 0.0 is below the scanner's range: noise
    scan = LaserScan(range_min=0.5, ranges=[5.0, -inf, 5.0, nan, nan, 0.0, 5.0, 4.0, 3.0])
    values = read(scan)
    assert values[0] == 0.0  # -inf: too near to measure
    assert math.isnan(values[1])  # nothing is known: not free
    assert read(LaserScan(ranges=[1.0, 2.0])) == []


def test_elements_by_index_and_by_name(load_block):
    read = load_block(1, topic="a", type="std_msgs/msg/Float32MultiArray", fields=["data[2]"])
    assert read(Float32MultiArray(data=[1.0, 2.0, 3.0])) == [3.0]
    assert read(Float32MultiArray(data=[1.0, 2.0])) == []
    read = load_block(
        2, topic="joints", type="sensor_msgs/msg/JointState", order_by="name",
        fields=["position[right]", "velocity[left]"],
    )  # fmt: skip
    state = JointState(name=["left", "right"], position=[1.0, 2.0], velocity=[3.0, 4.0])
    assert read(state) == [2.0, 3.0]
    state = JointState(name=["right", "left"], position=[2.0, 1.0], velocity=[4.0, 3.0])
    assert read(state) == [2.0, 3.0]
    assert read(JointState(name=["right"], position=[2.0], velocity=[4.0])) == []
    read = load_block(
        1, topic="p", type="geometry_msgs/msg/PoseArray", fields=["poses[1].position.z"]
    )
    last = Pose()
    last.position.z = 4.0
    assert read(PoseArray(poses=[Pose(), last])) == [4.0]


def test_what_single_precision_cannot_hold_is_not_finite(load_block):
    read = load_block(2, topic="odom", type=ODOMETRY, fields=PLACE, scale=10.0)
    assert read(odometry(1e38, 1e308)) == [math.inf, math.inf]


# Commands


def commanded(command, count, begin_s=0.0):
    """The values x and y of so many commands, one per period."""
    sent = []
    for i in range(count):
        message = command.next(begin_s + i * command.period_s, None)
        sent.append((message.linear.x, message.linear.y))
    return sent


def test_commands_change_by_the_acceleration_at_most(load):
    command = load(changed(MAP, "command.deceleration", 4.0)).command
    assert command.at_rest
    command.aim(RIGHT)
    x = [x for x, _ in commanded(command, 11)]
    # 2 m/s^2 at 20 Hz: 0.1 m/s each; the first elapsed time is unknown and counts as two periods.
    assert x == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])
    command.aim(LEFT)
    x = [x for x, _ in commanded(command, 7, begin_s=0.55)]
    assert x == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, -0.1, -0.2])
    command.aim(None)
    x = [x for x, _ in commanded(command, 2, begin_s=0.9)]
    assert x == pytest.approx([0.0, 0.0])
    assert command.at_rest


def test_a_pause_is_no_leave_to_jump(load):
    command = load(MAP).command
    command.aim(UP)
    commanded(command, 2)
    assert command.next(100.0, None).linear.y == pytest.approx(0.5)  # 0.3 and two periods' 0.2


def test_a_fast_command_brakes_no_slower_where_it_is_seldom_sent(load):
    """As while the record of a stop takes long: 20 commands a second, of 1,000."""
    document = changed(MAP, "command.rate_hz", 1000.0)
    command = load(changed(document, "command.acceleration", 2.0)).command
    command.aim(UP)
    for step in range(600):
        command.next(step / 1000, None)
    command.aim(None)
    for step in range(11):
        last = command.next(0.6 + step / 20, None)
    assert last.linear.y == 0.0


def test_standing_is_at_once(load):
    command = load(MAP).command
    command.aim(UP)
    commanded(command, 5)
    assert command.standing(None).linear.y == 0.0
    assert command.at_rest


def differential(topic="odom", kind=ODOMETRY, heading="pose.pose.orientation"):
    """A map of a base with two driven wheels and no inertia to speak of."""
    entry = {"topic": topic, "type": kind, "heading": heading, "ahead_m": 0.5}
    document = changed(MAP, "command.differential", entry)
    document = changed(document, "command.fields", ["linear.x", "angular.z"])
    document = changed(document, "command.velocity", [1.0, 1.5])
    return changed(document, "command.acceleration", [100.0, 100.0])


def test_a_differential_drive_turns_to_where_the_action_points(load):
    sensor_map = load(differential())
    command = sensor_map.command

    def sent(now_s):
        message = command.next(now_s, None)
        return message.linear.x, message.angular.z

    command.aim(UP)
    assert sent(1.0) == (0.0, 0.0)  # no heading yet
    assert command.heading_trouble(1.0) == "odom: no heading, so that the base stands"
    take(sensor_map, "odom", odometry(heading=0.0), 1.0)
    assert command.heading_trouble(1.0) == ""
    assert sent(1.1) == pytest.approx((0.0, 1.5))  # to the left by 1 / 0.5, limited to 1.5
    take(sensor_map, "odom", odometry(heading=math.pi / 6), 1.2)
    assert sent(1.2) == pytest.approx((0.5, 1.5))  # sin 30, cos 30 / 0.5 = 1.73
    take(sensor_map, "odom", odometry(heading=math.pi / 2), 1.3)
    assert sent(1.3) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert sent(1.4 + TIMEOUT_S) == (0.0, 0.0)  # the heading is too old
    take(sensor_map, "odom", odometry(heading=math.pi / 2), 5.0, -0.5)
    assert sent(5.1) != (0.0, 0.0)
    assert sent(5.1 + TIMEOUT_S) == (0.0, 0.0)  # however far its clock is ahead
    take(sensor_map, "odom", odometry(heading=math.pi / 2), 9.0, -10.0)
    assert sent(9.1) == (0.0, 0.0)  # so far ahead is no measurement
    take(sensor_map, "odom", odometry(heading=math.pi / 2), 20.0)
    assert sent(20.1) != (0.0, 0.0)
    sensor_map.forget()  # time has jumped
    assert sent(20.2) == (0.0, 0.0)


def test_an_orientation_that_is_never_set_is_no_heading(load):
    sensor_map = load(differential())
    command = sensor_map.command
    command.aim(RIGHT)
    unset = Odometry()
    unset.pose.pose.orientation.w = 0.0
    take(sensor_map, "odom", odometry(), 1.0)
    for now_s, speed in ((1.1, 1.0), (1.2 + TIMEOUT_S, 0.0)):  # one does no harm, many are silence
        take(sensor_map, "odom", unset, now_s)
        assert command.next(now_s, None).linear.x == speed
        assert bool(command.heading_trouble(now_s)) == (speed == 0.0)


def test_a_heading_that_a_message_does_not_have_is_none(load):
    """An array that is shorter than usual costs one message, as it does where a block reads it."""
    poses = {"topic": "poses", "type": "geometry_msgs/msg/PoseArray"}
    place = poses | {"fields": ["poses[0].position.x", "poses[0].position.y"]}
    turn = {"by": "poses[1].orientation", "into": "body"}
    document = differential(poses["topic"], poses["type"], "poses[1].orientation")
    sizes = {"place": 2}
    sensor_map = load(document | {"blocks": {"place": place | {"turn": turn}}}, sizes)
    command = sensor_map.command
    whole = PoseArray(poses=[Pose(), Pose()])
    for now_s, message, usable in ((1.0, whole, True), (1.1, PoseArray(poses=[Pose()]), False)):
        reading = take(sensor_map, "poses", message, now_s)[0]
        assert np.isfinite(reading.values).all() == usable
    command.aim(RIGHT)
    assert command.next(1.0 + 2 * TIMEOUT_S, None).linear.x == 0.0


def test_stamped_and_whole_numbered_commands(load):
    from builtin_interfaces.msg import Time

    document = changed(MAP, "command.type", "geometry_msgs/msg/TwistStamped")
    document = changed(document, "command.fields", ["twist.linear.x", "twist.linear.y"])
    command = load(changed(document, "command.frame_id", "base_link")).command
    command.aim(RIGHT)
    message = command.next(0.0, Time(sec=7))
    assert (message.header.stamp.sec, message.header.frame_id) == (7, "base_link")
    assert message.twist.linear.x == pytest.approx(0.2)

    document = changed(MAP, "command.type", "std_msgs/msg/Int16MultiArray")
    document = changed(document, "command.fields", ["data[0]", "data[2]"])
    document = changed(document, "command.actions.up", [200.0, -100.0])
    document = changed(document, "command.velocity", 200.0)
    command = load(changed(document, "command.acceleration", 304.0)).command
    command.aim(UP)
    assert list(command.next(0.0, None).data) == [30, 0, -30]  # 0.1 s: 30.4, in whole numbers


# Bad maps


def at(change, path, *value):
    """A change of the document, for `name_of_case` and pytest's output."""
    return (change, path, *value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at(changed, "blocks.velocity"), ["blocks: no 'velocity'", "map it"]),
        (at(renamed, "blocks.others", "other"), ["unknown block 'other'", "did you mean others"]),
        (at(renamed, "blocks.others.topic", "tpoic"), ["others", "'tpoic'", "did you mean topic"]),
        (at(changed, "blocks.others.topic"), ["others", "missing key 'topic'"]),
        (at(changed, "command"), ["missing key 'command'"]),
        (at(changed, "blocks.velocity.type", "Odometry"), ["velocity: type", "package/msg/Type"]),
        (at(changed, "blocks.velocity.type", "os/msg/Path"), ["'os/msg/Path'", "no package 'os'"]),
        (at(changed, "blocks.velocity.type", "nav_mgs/msg/Path"), ["no package 'nav_mgs'"]),
        (
            at(changed, "blocks.velocity.type", "nav_msgs/msg/Odometri"),
            ["nav_msgs", "unknown message type 'Odometri'", "did you mean Odometry"],
        ),
        (
            at(changed, "blocks.velocity.type", "nav_msgs/msg/Path"),
            ["velocity: fields", "Path has no field 'twist'", "poses"],
        ),
        (
            at(changed, "blocks.velocity.fields", ["twist.twist.liner.x"]),
            ["Twist has no field 'liner'", "did you mean linear"],
        ),
        (at(changed, "blocks.velocity.fields", ["twist..x"]), ["'twist..x' is not a field"]),
        (at(changed, "blocks.velocity.fields", ["twist.twist.linear"]), ["Vector3, not a number"]),
        (at(changed, "blocks.velocity.fields", ["twist.twist.linear.x.y"]), ["double", "'y'"]),
        (at(changed, "blocks.velocity.fields", ["pose.covariance"]), ["not a number", "resample"]),
        (at(changed, "blocks.velocity.fields", ["pose.covariance[36]"]), ["36 elements"]),
        (at(changed, "blocks.velocity.fields", ["pose.covariance[x]"]), ["'x'", "order_by"]),
        (at(changed, "blocks.velocity.fields", ["pose[0]"]), ["'pose'", "not an array"]),
        (at(changed, "blocks.velocity.order_by", "pose"), ["order_by", "not an array of texts"]),
        (
            at(changed, "blocks.velocity.fields", ["twist.twist.linear.x"]),
            ["velocity: turn", "pairs"],
        ),
        (
            at(changed, "blocks.others.peers", ["robot_0", "robot_1"]),
            ["others: gives 2 values", "bundle's block has 4"],
        ),
        (at(changed, "blocks.others.peers", ["/robot_0"]), ["peers", "'/robot_0'"]),
        (at(changed, "blocks.others.topic", "/odom"), ["others: topic", "relative"]),
        (at(changed, "blocks.others.points", [[0.0, 0.0]]), ["points", "beside 'peers'"]),
        (at(changed, "blocks.others.lost_peer", [0.0]), ["lost_peer", "1 values", "2"]),
        (at(changed, "blocks.velocity.lost_peer", [0.0]), ["lost_peer", "without 'peers'"]),
        (at(changed, "blocks.landmarks.points", [[0.0, 0.0, 0.0]]), ["points", "3 values", "2"]),
        (at(changed, "blocks.landmarks.scale", [1.0, 2.0]), ["scale", "2 values for 4"]),
        (at(changed, "blocks.landmarks.scale", "big"), ["scale", "'big'"]),
        (at(changed, "blocks.landmarks.clip", [1.0, -1.0]), ["clip", "the lower first"]),
        (at(changed, "blocks.landmarks.resample", 4), ["clip", "'resample'"]),
        (at(changed, "blocks.velocity.turn.by", "pose.pose"), ["turn: by", "Quaternion"]),
        (at(changed, "blocks.velocity.turn.into", "map"), ["turn: into", "'map'", "world"]),
        (
            at(changed, "command.differential", {
                "topic": "odom", "type": "nav_msgs/msg/Path", "heading": "x", "ahead_m": 0.1,
            }),
            ["differential: heading", "'x'"],
        ),
        (
            at(changed, "command.differential", {
                "topic": "odom", "type": ODOMETRY, "heading": "pose.pose.orientation",
                "ahead_m": 0.0,
            }),
            ["ahead_m", "above 0"],
        ),
        (at(renamed, "command.actions.left", "lefft"), ["unknown action 'lefft'", "mean left"]),
        (at(changed, "command.actions.left"), ["actions: no 'left'"]),
        (at(changed, "command.actions.left", [1.0]), ["left", "1 values", "2 fields"]),
        (at(changed, "command.actions.left", [-3.0, 0.0]), ["left: 3", "limit 'velocity' of 1"]),
        (at(changed, "command.velocity", -1.0), ["velocity: -1", "above 0"]),
        (at(changed, "command.velocity", [1.0]), ["velocity", "1 values for 2"]),
        (at(changed, "command.acceleration", 0.0), ["acceleration: 0", "above 0"]),
        (at(changed, "command.deceleration", [1.0, -1.0]), ["deceleration: -1", "above 0"]),
        (at(changed, "command.acceleration"), ["missing key 'acceleration'"]),
        (at(changed, "command.rate_hz", 4.9), ["rate_hz: 4.9", "at least 5"]),
        (at(changed, "command.rate_hz", 1e6), ["rate_hz", "at most 1000"]),
        (at(changed, "command.fields", ["linear.x", "linear.w"]), ["Vector3", "'w'"]),
        (at(changed, "command.fields", ["linear", "angular"]), ["command: fields", "Vector3"]),
        (at(changed, "command.type", "geometry_msgs/msg/Twits"), ["'Twits'", "mean Twist"]),
    ],
    ids=name_of_case,
)  # fmt: skip
def test_bad_maps(load, refusal, tmp_path, change, words):
    function, *arguments = change
    message = refusal(load, function(MAP, *arguments))
    assert message.startswith(f"{tmp_path / 'map.yaml'}: ")
    for word in words:
        assert word in message


def test_a_topic_has_one_type(load, refusal):
    scan = {
        "topic": "odom", "type": "sensor_msgs/msg/LaserScan", "fields": ["range_min", "range_max"],
    }  # fmt: skip
    message = refusal(load, changed(MAP, "blocks.velocity", scan))
    assert "topic 'odom' is of another type" in message


def test_a_command_must_fit_its_field(load, refusal):
    document = changed(MAP, "command.type", "std_msgs/msg/UInt8MultiArray")
    document = changed(document, "command.fields", ["data[0]", "data[1]"])
    assert "-1 does not fit into data[0], a uint8 of 0 to 255" in refusal(load, document)


def test_legal_actions_cannot_be_sensed(tmp_path, refusal):
    path = write_yaml(tmp_path / "map.yaml", MAP)
    manifest = make_manifest(SIZES.items(), legal_actions_vary=True)
    assert "legal actions vary" in refusal(load_map, path, manifest, "/robot_1", TIMEOUT_S)


def test_missing_map(tmp_path, refusal):
    path = tmp_path / "none.yaml"
    message = refusal(load_map, path, make_manifest(), "/robot_0", 1.0)
    assert message == f"{path}: no such file; check the path"


def test_the_manifests_order_decides(load):
    """Blocks are numbered as the bundle reads them, whatever the order in the file."""
    turned_round = dict(reversed(BLOCKS.items()))
    sensor_map = load({"blocks": turned_round, "command": COMMAND})
    names = [BlockEntry(name, size, "m") for name, size in SIZES.items()]
    sizes = {
        reading.block: len(reading.values)
        for reading in take(sensor_map, "odom", odometry(), 1.0).values()
    }
    assert sizes == {0: names[0].size, 1: names[1].size}
