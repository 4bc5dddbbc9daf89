"""Faults of the network: rivals, wrong types, QoS that cannot match, many other processes.

Rows 21, 23, 24 and 27 of the fault table.
"""

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from ros_driver import ROBOT, another, driving, observations, until_said
from std_msgs.msg import String

from kdmarl_core.bundle import load_policy
from kdmarl_ros import graph, qos
from kdmarl_ros.msg import AgentAction, FeatureBlock

pytestmark = pytest.mark.ros

ERROR = DiagnosticStatus.ERROR
PARTICIPANTS = 20  # each some ten threads; what a swarm of so many robots brings


@pytest.fixture(scope="module")
def node(module_domain, start_shared_node, bundles):
    def start(*more):
        return start_shared_node(
            "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
            "-p", "timeout_s:=5.0", "-p", "sensor_reliability:=reliable", *more,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def sensors(module_domain, node, bundles):
    node()
    with driving(module_domain, load_policy(bundles / ROBOT).manifest) as driver:
        driver.until_listened_to()
        yield driver


@pytest.mark.parametrize(
    ("kind", "topic", "profile", "publishes", "words"),
    [
        (String, "sensors/velocity", 1, True, ["/stranger", "std_msgs/msg/String"]),
        (FeatureBlock, "sensors/velocity", qos.sensor("best_effort"), True,
         ["/stranger", "incompatible QoS", "reliable"]),
        (FeatureBlock, "sensors/velocity", qos.sensor("reliable"), True,
         ["2 publishers", "/stranger", "/sensors"]),
        (AgentAction, "action", qos.ACTION, True, ["/stranger publishes there, too"]),
        (AgentAction, "action", qos.LATCHED, False, ["/stranger", "asks for incompatible QoS"]),
        (String, "action", qos.ACTION, False, ["/stranger", "std_msgs/msg/String"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_peer_is_said_with_its_name(
    sensors, kind, topic, profile, publishes, words
):
    observation = observations(sensors.manifest, 1)[0]
    with another(sensors, "stranger", kind, topic, profile, publishes=publishes):
        sensors.until_reported(f"/{ROBOT}/{topic}", *words, level=ERROR)
        assert sensors.answer(observation, 1, 0).status == AgentAction.STATUS_POLICY
    sensors.until_reported("acting", meanwhile=lambda: sensors.send(observation, 1, 1))


def test_a_second_policy_for_the_same_robot(sensors, node):
    """Both say so; one that must be alone does not activate."""
    second = node("-p", "sole_publisher:=true")
    assert second.wait(timeout=60) == 2
    assert f"/{ROBOT}/policy publishes there already" in second.log.read_text()
    observation = observations(sensors.manifest, 1)[0]
    sensors.until_reported("acting", meanwhile=lambda: sensors.send(observation, 1, 1))
    third = node()
    sensors.until_reported(f"/{ROBOT}/action: /{ROBOT}/policy publishes there, too", level=ERROR)
    third.terminate()
    assert third.wait(timeout=30) == 0


def test_who_waits_to_know_its_rivals_can_be_ended(module_domain, start_shared_node, bundles):
    waiting = start_shared_node(
        "policy_node", "-r", "__ns:=/alone", "-p", f"bundle:={bundles / ROBOT}",
        "-p", f"robot:={ROBOT}", "-p", "sole_publisher:=true",
    )  # fmt: skip
    until_said(waiting, "configured")
    waiting.terminate()
    assert waiting.wait(timeout=graph.DISCOVERY_S / 2) == 0


def test_others_who_come_and_go_cost_no_answer(sensors):
    observation = observations(sensors.manifest, 1)[0]
    crowd = []
    try:
        for number in range(PARTICIPANTS):
            context = rclpy.Context()
            rclpy.init(context=context, domain_id=sensors.context.get_domain_id())
            crowd.append((context, rclpy.create_node(f"guest_{number}", context=context)))
            assert sensors.answer(observation, 2, number).step == number
        host = crowd[0][1]
        for number in range(200):
            passing = host.create_subscription(
                FeatureBlock, sensors.topic("sensors/velocity"), lambda message: None, 1
            )
            host.destroy_subscription(passing)
            if number % 20 == 0:
                assert sensors.answer(observation, 3, number).step == number
    finally:
        for context, guest in crowd:
            guest.destroy_node()
            rclpy.shutdown(context=context)
    assert sensors.state() == State.PRIMARY_STATE_ACTIVE
