"""Messages between robots over real DDS: peers that are silent, late, wrong or restarted."""

from array import array

import numpy as np
import pytest
import rclpy
from helpers import TRAINING, write_yaml
from ros_driver import ROBOT, driving, observations

from kdmarl_core.bundle import FORMATS, Inbox, encode, load_policy
from kdmarl_core.team import load_team
from kdmarl_ros import qos, topics
from kdmarl_ros.msg import AgentAction, PeerMessage
from kdmarl_ros.peer_link import PeerLink

pytestmark = pytest.mark.ros

PEER, OTHER = "robot_1", "robot_2"
HOLD = 4
TRAINED = int(TRAINING, 16)


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


@pytest.fixture(scope="module")
def robot(module_domain, start_shared_node, talking, policy):
    """One node under test; what drives it also plays one peer, and the other peer never comes."""
    start_shared_node(
        "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={talking / ROBOT}",
        "-p", "timeout_s:=0.4", "-p", "sensor_reliability:=reliable",
    )  # fmt: skip
    with driving(module_domain, policy.manifest) as sensors:
        sensors.heard = []
        sensors.hear(PeerMessage, topics.MESSAGE, sensors.heard.append, qos.MESSAGE)
        sensors.until_listened_to()
        sensors.peer = sensors.publisher(
            PeerMessage, topics.of_peer(f"/{ROBOT}", PEER, topics.MESSAGE), qos.MESSAGE
        )
        sensors.episode = 0
        yield sensors


@pytest.fixture
def episode(robot):
    """A new episode's number."""
    robot.episode = max(robot.episode, 1) + 1  # the first is that of streams
    robot.heard.clear()
    return robot.episode


def tell(robot, episode, step, values=(0.5, -0.5, 1.0), bits=8, data=None, training=TRAINED):
    data = encode(np.array(values, np.float32), "int8") if data is None else data
    message = PeerMessage(episode=episode, step=step, bits=bits, data=array("B", data))
    message.training = training
    robot.peer.publish(message)
    robot.peer.wait_for_all_acked()


def answers(robot, policy, episode, read, step, observation):
    """Whether the robot acts, and tells, as its bundle does on what it should have read."""
    answer = robot.answer(observation, episode, step)

    def told_now():
        return [told for told in robot.heard if (told.episode, told.step) == (episode, step)]

    robot.until(told_now)
    [told] = told_now()
    action = policy.act(observation, None, read)
    assert told.bits == FORMATS["int8"].bits
    assert bytes(told.data) == encode(policy.message, "int8")
    assert answer.action == action
    assert answer.status == AgentAction.STATUS_POLICY


def test_a_robot_listens_and_never_waits(robot, policy, episode):
    """A peer that speaks now and then; the other never came."""
    box = Inbox(ROBOT, policy.manifest.peers)
    box.begin(episode)
    for step, observation in enumerate(observations(policy.manifest, 10)):
        answers(robot, policy, episode, box.read(step), step, observation)
        if step in (0, 2, 3):
            values = np.array([step / 10, -0.5, 1.0], np.float32)
            box.put(0, episode, step, encode(values, "int8"), now=step)
            tell(robot, episode, step, values)
    assert box.ages == [HOLD + 1, HOLD + 1]


def test_a_team_is_linked_when_all_receivers_listen_whoever_else_does(robot, talking):
    """Two others, such as a recorder, listen to a robot with two receivers."""
    sender = rclpy.create_node("policy", namespace="/team/robot_1", context=robot.context)
    link = PeerLink(sender, load_policy(talking / PEER).manifest)
    topic = sender.resolve_topic_name(topics.MESSAGE)

    def listen():
        return robot.node.create_subscription(PeerMessage, topic, print, qos.MESSAGE)

    others = [listen(), listen()]
    nodes = [
        rclpy.create_node("policy", namespace=f"/team/{name}", context=robot.context)
        for name in (ROBOT, OTHER)
    ]
    for node in nodes:
        node.create_publisher(PeerMessage, topics.MESSAGE, qos.MESSAGE)
    robot.until(lambda: sender.count_subscribers(topic) == len(others))
    robot.until(lambda: all(sender.count_publishers(heard) for heard in link.heard_topics))
    assert not link.linked
    for node in nodes:
        node.create_subscription(PeerMessage, topic, print, qos.MESSAGE)
    robot.until(lambda: link.linked)
    for node in (sender, *nodes):
        node.destroy_node()
    for subscription in others:
        robot.node.destroy_subscription(subscription)


def test_a_silent_peer_is_named(robot, episode):
    robot.stream_until(lambda: robot.counted("age_steps/").get(f"from_{OTHER}") == HOLD + 1)
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
    silence = Inbox(ROBOT, policy.manifest.peers).read(0)
    answers(robot, policy, episode, silence, 0, observation)
    tell(robot, **{"episode": episode, "step": 0, **fault})
    answers(robot, policy, episode, silence, 1, observation)
    robot.until(lambda: robot.dropped().get(f"from_{PEER}/{reason}", 0) == before + 1)


def test_a_restarted_peer_is_heard_again(robot, policy, episode):
    """Another publisher on the same topic, after a silence beyond the limit."""
    box, observation = Inbox(ROBOT, policy.manifest.peers), observations(policy.manifest, 1)[0]
    box.begin(episode)
    answers(robot, policy, episode, box.read(0), 0, observation)
    tell(robot, episode, 0)
    robot.node.destroy_publisher(robot.peer)
    for step in range(1, HOLD + 3):
        robot.answer(observation, episode, step)
    robot.peer = robot.publisher(
        PeerMessage, topics.of_peer(f"/{ROBOT}", PEER, topics.MESSAGE), qos.MESSAGE
    )
    tell(robot, episode, HOLD + 2)
    box.put(0, episode, HOLD + 2, encode(np.array([0.5, -0.5, 1.0]), "int8"), now=HOLD + 2)
    answers(robot, policy, episode, box.read(HOLD + 3), HOLD + 3, observation)
    assert box.ages[0] == 1
