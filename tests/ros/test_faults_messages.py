"""Messages between robots over real DDS: peers that are silent, late, wrong or restarted."""

import contextlib
import itertools
from array import array

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from helpers import TRAINING, write_yaml
from ros_driver import ROBOT, another, driving, observations
from std_msgs.msg import Int32, String
from std_srvs.srv import SetBool

from kdmarl_core.bundle import (
    FORMATS,
    UNDISTURBED,
    Disturbance,
    Inbox,
    encode,
    load_policy,
)
from kdmarl_core.team import load_team
from kdmarl_ros import qos, topics
from kdmarl_ros.msg import AgentAction, PeerMessage
from kdmarl_ros.peer_link import PeerLink

pytestmark = pytest.mark.ros

POLICY, SAFE = AgentAction.STATUS_POLICY, AgentAction.STATUS_SAFE
OVERRIDE = AgentAction.STATUS_OVERRIDE
PEER, OTHER = "robot_1", "robot_2"
HOLD = 4
NOTHING = HOLD + 1  # the age of what is not held
TRAINED = int(TRAINING, 16)
VALUES = (0.5, -0.5, 1.0)
FLOWN = 3  # what a person chooses


@pytest.fixture(scope="module")
def talking(write_bundles, tmp_path_factory):
    """Bundles of a team in which everybody tells everybody three values."""
    messages = {"size": 3, "to": "all", "hold_steps": HOLD}
    forgetful = {"network": "mlp", "width": 16}
    document = {
        "base": "simple_spread_lh",
        "defaults": {"student": forgetful, "messages": messages},
    }
    path = write_yaml(tmp_path_factory.mktemp("talking") / "talking.yaml", document)
    return write_bundles(load_team(str(path)))


@pytest.fixture(scope="module")
def policy(talking):
    return load_policy(talking / ROBOT)


@contextlib.contextmanager
def flying(domain, start_node, bundles, *parameters, peers):
    """A policy node; what drives it also plays these peers, and listens as all of them do."""
    start_node(
        "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
        "-p", "sensor_reliability:=reliable", *parameters,
    )  # fmt: skip
    with driving(domain, load_policy(bundles / ROBOT).manifest) as sensors:
        sensors.heard, sensors.peers, sensors.episode = [], {}, 0
        sensors.hear(PeerMessage, topics.MESSAGE, sensors.heard.append, qos.HEARD)
        there = [  # the robot is linked once all of them listen
            rclpy.create_node("policy", namespace=f"/{peer}", context=sensors.context)
            for peer in peers
        ]
        for peer, node in zip(peers, there, strict=True):
            listen(node, sensors.topic(topics.MESSAGE))
            sensors.peers[peer] = speaking_of(sensors, peer)
        sensors.until_listened_to()
        yield sensors


def listen(node, topic):
    return node.create_subscription(PeerMessage, topic, print, qos.HEARD)


def speaking_of(robot, peer):
    """A publisher of a peer's messages."""
    topic = topics.of_peer(f"/{ROBOT}", peer, topics.MESSAGE)
    return robot.publisher(PeerMessage, topic, qos.TOLD)


@pytest.fixture(scope="module")
def robot(module_domain, start_shared_node, talking):
    """One node under test; the other peer never comes."""
    with flying(
        module_domain, start_shared_node, talking, "-p", "timeout_s:=0.4", peers=[PEER]
    ) as sensors:
        yield sensors


@pytest.fixture
def episode(robot):
    """A new episode's number."""
    robot.episode = max(robot.episode, 1) + 1  # the first is that of streams
    robot.heard.clear()
    return robot.episode


def message_of(episode, step, values=VALUES, bits=8, data=None, training=TRAINED):
    data = encode(np.array(values, np.float32), "int8") if data is None else data
    message = PeerMessage(episode=episode, step=step, bits=bits, data=array("B", data))
    message.training = training
    return message


def tell(robot, *what, peer=PEER, **more):
    """Say something as a peer; it has arrived when this returns."""
    robot.peers[peer].publish(message_of(*what, **more))
    robot.peers[peer].wait_for_all_acked()


def put(box, episode, step, values=VALUES, now=None, peer=PEER):
    """The same into an inbox."""
    index = [PEER, OTHER].index(peer)
    data = encode(np.array(values, np.float32), "int8")
    box.put(index, episode, step, data, step if now is None else now)


def inbox(policy, episode, disturbance=UNDISTURBED):
    """What the robot should hold when an episode begins."""
    box = Inbox(ROBOT, policy.manifest.peers, disturbance)
    box.begin(episode)
    return box


def expected(policy, read, observation):
    """What the bundle chooses, and what it tells."""
    action = policy.act(observation, None, read)
    return action, encode(policy.message, "int8")


def told_at(robot, episode, step):
    """What was heard of the robot in a step."""
    return [told for told in robot.heard if (told.episode, told.step) == (episode, step)]


def answers(
    robot, policy, episode, read, step, observation, status=POLICY, meanwhile=lambda: None
):
    """The robot acts, and tells, as its bundle does on what it should have read."""

    def answered():
        stamp = (episode, step, status)
        return [a for a in robot.actions if (a.episode, a.step, a.status) == stamp]

    def send():
        meanwhile()
        robot.send(observation, episode, step)

    robot.actions.clear()
    robot.until(lambda: answered() and told_at(robot, episode, step), meanwhile=send)
    [told] = told_at(robot, episode, step)
    action, data = expected(policy, read, observation)
    assert told.bits == FORMATS["int8"].bits
    assert bytes(told.data) == data
    chosen = {POLICY: action, SAFE: policy.manifest.safe_index, OVERRIDE: FLOWN}[status]
    assert {answer.action for answer in answered()} == {chosen}


def test_a_robot_listens_and_never_waits(robot, policy, episode):
    """A peer that speaks now and then; the other never came."""
    box = inbox(policy, episode)
    for step, observation in enumerate(observations(policy.manifest, 10)):
        answers(robot, policy, episode, box.read(step), step, observation)
        if step in (0, 2, 3):
            values = (step / 10, -0.5, 1.0)
            put(box, episode, step, values)
            tell(robot, episode, step, values)
    assert box.ages == [NOTHING, NOTHING]


def test_a_team_is_linked_when_all_receivers_listen_whoever_else_does(robot, talking):
    """Two others, such as a recorder, listen to a robot with two receivers."""
    sender = rclpy.create_node("policy", namespace="/team/robot_1", context=robot.context)
    link = PeerLink(sender, load_policy(talking / PEER).manifest, recorded=False)
    topic = sender.resolve_topic_name(topics.MESSAGE)

    others = [listen(robot.node, topic), listen(robot.node, topic)]
    nodes = [
        rclpy.create_node("policy", namespace=f"/team/{name}", context=robot.context)
        for name in (ROBOT, OTHER)
    ]
    for node in nodes:
        node.create_publisher(PeerMessage, topics.MESSAGE, qos.TOLD)
    robot.until(lambda: sender.count_subscribers(topic) == len(others))
    robot.until(lambda: all(sender.count_publishers(heard) for heard in link.heard_topics))
    assert not link.linked
    for node in nodes:
        listen(node, topic)
    robot.until(lambda: link.linked)
    for node in (sender, *nodes):
        node.destroy_node()
    for subscription in others:
        robot.node.destroy_subscription(subscription)


def test_a_silent_peer_is_named(robot, episode):
    robot.stream_until(lambda: robot.counted("age_steps/").get(f"from_{OTHER}") == NOTHING)
    robot.until_reported("no messages of", OTHER, meanwhile=robot.send_new)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"episode": 77}, "other_episode"),
        ({"data": b"\0" * 4}, "wrong_size"),
        ({"data": b"\0" * 100_000}, "wrong_size"),
        ({"data": b"\0" * 2}, "wrong_size"),
        ({"bits": 4}, "wrong_format"),
        ({"data": b"\x80\0\0"}, "out_of_range"),
        ({"step": 900}, "ahead"),
        ({"training": TRAINED + 1}, "other_training"),
    ],
)
def test_a_bad_message_is_dropped_and_its_sender_named(robot, policy, episode, fault, reason):
    before = robot.dropped().get(f"from_{PEER}/{reason}", 0)
    observation = observations(policy.manifest, 1)[0]
    silence = inbox(policy, episode).read(0)
    answers(robot, policy, episode, silence, 0, observation)
    tell(robot, **{"episode": episode, "step": 0, **fault})
    answers(robot, policy, episode, silence, 1, observation)
    robot.until(lambda: robot.dropped().get(f"from_{PEER}/{reason}", 0) == before + 1)


def test_a_restarted_peer_is_heard_again(robot, policy, episode):
    """Another publisher on the same topic, after a silence beyond the limit."""
    box, observation = inbox(policy, episode), observations(policy.manifest, 1)[0]
    answers(robot, policy, episode, box.read(0), 0, observation)
    tell(robot, episode, 0)
    robot.node.destroy_publisher(robot.peers[PEER])
    for step in range(1, HOLD + 3):
        robot.answer(observation, episode, step)
    robot.peers[PEER] = speaking_of(robot, PEER)
    tell(robot, episode, HOLD + 2)
    put(box, episode, HOLD + 2)
    answers(robot, policy, episode, box.read(HOLD + 3), HOLD + 3, observation)
    assert box.ages[0] == 1


@pytest.mark.parametrize(
    ("kind", "profile", "words"),
    [
        (String, qos.TOLD, ["/stranger uses std_msgs/msg/String"]),
        (PeerMessage, qos.ANY_PUBLISHER, ["/stranger offers incompatible QoS", "reliable"]),
        (PeerMessage, qos.TOLD, ["2 publishers", "/sensors", "/stranger"]),
    ],
)
def test_what_is_wrong_with_a_peers_topic_is_said_with_its_name(
    robot, policy, episode, kind, profile, words
):
    """The peer itself is heard meanwhile."""
    topic, box = topics.of_peer(f"/{ROBOT}", PEER, topics.MESSAGE), inbox(policy, episode)
    first, second = observations(policy.manifest, 2)
    with another(robot, "stranger", kind, topic, profile):
        robot.until_reported(f"{topic}: ", *words, level=DiagnosticStatus.ERROR)
        answers(robot, policy, episode, box.read(0), 0, first)
        tell(robot, episode, 0)
        put(box, episode, 0)
        answers(robot, policy, episode, box.read(1), 1, second)
    robot.until_reported("no messages of", level=DiagnosticStatus.WARN, meanwhile=robot.send_new)


@pytest.mark.parametrize(
    ("kind", "profile", "publishes", "words"),
    [
        (PeerMessage, qos.TOLD, True, ["/stranger publishes there, too"]),
        (String, qos.TOLD, False, ["/stranger uses std_msgs/msg/String"]),
        (PeerMessage, qos.LATCHED, False, ["/stranger asks for incompatible QoS"]),
    ],
)
def test_who_is_wrong_on_a_robots_own_topic_is_named(
    robot, policy, episode, kind, profile, publishes, words
):
    """The robot tells its messages all the same."""
    [observation] = observations(policy.manifest, 1)
    with another(robot, "stranger", kind, topics.MESSAGE, profile, publishes=publishes):
        robot.until_reported(f"/{ROBOT}/{topics.MESSAGE}: ", *words, level=DiagnosticStatus.ERROR)
        answers(robot, policy, episode, inbox(policy, episode).read(0), 0, observation)


# Floods


@pytest.mark.parametrize(
    ("ahead", "ages"),
    [(qos.HEARD.depth - 1, [NOTHING, 1, 1]), (qos.HEARD.depth, [NOTHING, NOTHING, 1])],
)
def test_of_a_flood_the_newest_few_are_heard(robot, policy, episode, ahead, ages):
    """The last ones cannot be read yet, those before can: unless they are too many ago."""
    box, observation = inbox(policy, episode), observations(policy.manifest, 1)[0]
    answers(robot, policy, episode, box.read(0), 0, observation)
    found = [box.ages[0]]
    for number in range(50):
        tell(robot, episode, 0, (number / 100, 0.0, 0.0))
    tell(robot, episode, 0)
    if ahead < qos.HEARD.depth:
        put(box, episode, 0)
    for number in range(ahead):
        values = (-1.0, 1.0, number / 10)
        tell(robot, episode, 1, values)
        put(box, episode, 1, values, now=0)
    for step in (1, 2):
        answers(robot, policy, episode, box.read(step), step, observation)
        found.append(box.ages[0])
    assert found == ages


def test_a_flood_costs_no_decision(robot, policy, episode):
    """What is heard of it in time is a matter of chance; what was said last is not."""
    box, steps = inbox(policy, episode), 20

    def flood(step):
        for number in range(100):
            robot.peers[PEER].publish(message_of(episode, step, (number / 100, 0.0, 0.0)))

    for step, observation in enumerate(observations(policy.manifest, steps)):
        flood(step)
        assert robot.answer(observation, episode, step).step == step
    tell(robot, episode, steps - 1)
    put(box, episode, steps - 1)
    answers(robot, policy, episode, box.read(steps), steps, observation)
    assert box.ages[0] == 1


# People, and own sensors


@contextlib.contextmanager
def stopping(robot):
    def stop(stopped):
        name = f"/{ROBOT}/{topics.EMERGENCY_STOP}"
        assert robot.call_at(SetBool, name, SetBool.Request(data=stopped)).success

    stop(True)
    try:
        yield lambda: None
    finally:
        stop(False)


@contextlib.contextmanager
def steering(robot):
    publisher = robot.publisher(Int32, topics.OVERRIDE, qos.COMMAND)
    try:
        yield lambda: robot.override(publisher, FLOWN)
    finally:  # ends by itself
        robot.node.destroy_publisher(publisher)


@pytest.mark.parametrize(("holding", "status"), [(stopping, SAFE), (steering, OVERRIDE)])
def test_a_robot_that_people_hold_goes_on_listening_and_telling(
    robot, policy, episode, holding, status
):
    box = inbox(policy, episode)
    *held, free = observations(policy.manifest, 6)
    with holding(robot) as again:
        for step, observation in enumerate(held):
            read = box.read(step)
            answers(robot, policy, episode, read, step, observation, status, meanwhile=again)
            tell(robot, episode, step)
            put(box, episode, step)
    assert box.ages[0] == 1
    answers(robot, policy, episode, box.read(len(held)), len(held), free)


def test_a_robot_whose_own_sensors_fail_tells_nothing(robot, policy, episode):
    box, observation = inbox(policy, episode), observations(policy.manifest, 1)[0]
    answers(robot, policy, episode, box.read(0), 0, observation)
    robot.actions.clear()
    missing = robot.manifest.blocks[0].name
    robot.until(
        lambda: any(action.status == SAFE for action in robot.actions),
        meanwhile=lambda: robot.send(observation, episode, 1, without=[missing]),
    )
    answers(robot, policy, episode, box.read(1), 1, observation)
    # In the order in which they were sent.
    assert [(told.episode, told.step) for told in robot.heard] == [(episode, 0), (episode, 1)]


# Nodes of their own


@pytest.mark.parametrize(
    ("disturbance", "ages"),
    [
        (Disturbance(loss=1.0), [NOTHING] * 8),
        (Disturbance(delay_steps=2), [NOTHING, NOTHING, 2, 2, 2, 2, 2, 2]),
        (Disturbance(loss=0.5, delay_steps=3), None),
    ],
)
def test_loss_and_delay_are_rehearsed_as_offline(
    domain, start_node, talking, policy, disturbance, ages
):
    """Both peers tell something new in every step."""
    parameters = [
        "-p", f"message_loss:={disturbance.loss}",
        "-p", f"message_delay_steps:={disturbance.delay_steps}",
    ]  # fmt: skip
    episode, peers = 7, [PEER, OTHER]
    box, undisturbed = inbox(policy, episode, disturbance), inbox(policy, episode)
    found, unlike = [], 0
    with flying(domain, start_node, talking, *parameters, peers=peers) as robot:
        for step, observation in enumerate(observations(policy.manifest, 8)):
            read = box.read(step)
            answers(robot, policy, episode, read, step, observation)
            found.append(tuple(box.ages))
            unlike += expected(policy, read, observation) != expected(
                policy, undisturbed.read(step), observation
            )
            for number, peer in enumerate(peers):
                values = (step / 10, number, -0.5)
                tell(robot, episode, step, values, peer=peer)
                put(box, episode, step, values, peer=peer)
                put(undisturbed, episode, step, values, peer=peer)
        assert ages is None or found == [(age, age) for age in ages]
        assert unlike > 3  # it makes a difference
        reported = {f"from_{peer}": age for peer, age in zip(peers, box.ages, strict=True)}
        robot.until(lambda: robot.counted("age_steps/") == reported)
        assert not any(key.startswith("from_") for key in robot.dropped())


def test_in_real_time_ages_are_counted_in_the_simulations_steps(
    domain, start_node, talking, policy
):
    """Steps that are missed count, too; a stop changes nothing."""
    episode, box, found = 7, inbox(policy, 7), []
    parameters = ["-p", "mode:=real_time", "-p", "rate_hz:=20.0", "-p", "timeout_s:=30.0"]
    with flying(domain, start_node, talking, *parameters, peers=[PEER, OTHER]) as robot:

        def settles(step, observation, status):
            """It may have decided before all that it senses had come, and again since."""
            action, data = expected(policy, box.read(step), observation)
            found.append(box.ages[0])
            action = action if status == POLICY else policy.manifest.safe_index

            def settled():
                told = told_at(robot, episode, step)
                acted = [(a.action, a.status) for a in robot.actions if a.step == step]
                return told and bytes(told[-1].data) == data and acted[-1:] == [(action, status)]

            robot.actions.clear()
            robot.until(settled, meanwhile=lambda: robot.send(observation, episode, step))

        def goes_on(now, told, status=POLICY):
            settles(now, observations(policy.manifest, now + 1)[now], status)
            for step in told:
                values = (step / 10, -0.5, 1.0)
                tell(robot, episode, step, values)
                put(box, episode, step, values, now)

        goes_on(0, told=[0])
        goes_on(1, told=[])
        goes_on(3, told=[2])  # a step is missed, and a message is late
        goes_on(4, told=[4, 3])  # out of order
        with stopping(robot):
            goes_on(5, told=[], status=SAFE)
        goes_on(9, told=[])
    assert found == [NOTHING, 1, 3, 2, 1, NOTHING]


def test_with_real_sensors_ages_are_counted_in_periods(
    domain, start_node, talking, policy, tmp_path
):
    """Whatever a peer counts, what it says is held for so many periods."""
    document = {
        "blocks": {
            block.name: {
                "topic": topics.sensor(block.name),
                "type": "kdmarl_ros/msg/FeatureBlock",
                "fields": [f"data[{index}]" for index in range(block.size)],
            }
            for block in policy.manifest.blocks
        },
        "command": {
            "topic": "cmd_vel",
            "type": "geometry_msgs/msg/Twist",
            "fields": ["linear.x"],
            "actions": {name: [0.0] for name in policy.manifest.actions},
            "velocity": 1.0,
            "acceleration": 1.0,
        },
    }
    parameters = [
        "-p", f"sensor_map:={write_yaml(tmp_path / 'map.yaml', document)}",
        "-p", "mode:=real_time", "-p", "rate_hz:=2.0", "-p", "timeout_s:=30.0",
    ]  # fmt: skip
    for observation in observations(policy.manifest, 50):
        box, ages = inbox(policy, 0), {}  # by what is told then
        ages[expected(policy, box.read(0), observation)[1]] = NOTHING
        put(box, 0, 0)
        for age in range(1, HOLD + 1):
            ages[expected(policy, box.read(age), observation)[1]] = age
        if len(ages) == NOTHING:  # all can be told apart
            break

    with flying(domain, start_node, talking, *parameters, peers=[PEER, OTHER]) as robot:

        def found():
            return [ages.get(bytes(told.data)) for told in robot.heard]

        def send():
            robot.send(observation, 1, 0)

        robot.until(lambda: found()[-1:] == [NOTHING], meanwhile=send)
        tell(robot, 7, 12345)
        robot.heard.clear()
        robot.until(lambda: {*found()} - {NOTHING} and found()[-1] == NOTHING, meanwhile=send)
        # Others may have been on their way.
        heard = list(itertools.dropwhile(lambda age: age == NOTHING, found()))
        assert heard == sorted(heard)  # periods may be missed
        robot.until_reported("", meanwhile=send)
        assert not any(key.startswith("from_") for key in robot.dropped())
