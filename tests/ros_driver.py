"""A fake set of sensors for one robot: publishes its inputs, hears its actions and diagnostics."""

import contextlib
import time

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, Int32, String

from kdmarl_ros import qos, topics
from kdmarl_ros.msg import AgentAction, FeatureBlock

ROBOT = "robot_0"
LONG_S = 30.0  # for what takes a fraction of it, on a busy machine, too
SETTLE_S = 0.3  # both ends of a topic do not find each other at the same moment
TRIES = 3  # of showing that nothing but the policy acts: a process that is held up is silent, too


def observations(manifest, count):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, manifest.observation_size)).astype(np.float32)


@contextlib.contextmanager
def driving(domain, manifest, robot=ROBOT):
    sensors = Sensors(domain, manifest, robot)
    try:
        yield sensors
    finally:
        sensors.close()


@contextlib.contextmanager
def another(sensors, name, kind, topic, profile, *, publishes=True):
    """Another node on one of the robot's topics, as in a process of its own."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=sensors.context.get_domain_id())
    node = rclpy.create_node(name, context=context)
    make = node.create_publisher if publishes else node.create_subscription
    arguments = [kind, sensors.topic(topic), profile]
    if not publishes:
        arguments.insert(2, lambda message: None)
    make(*arguments)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def until_said(child, words, timeout_s=60):
    """Wait until the log of a running process holds some words."""
    give_up = time.monotonic() + timeout_s
    while words not in (log := child.log.read_text()):
        assert time.monotonic() < give_up, log
        assert child.poll() is None, log
        time.sleep(0.05)
    return log


class Sensors:
    """Publishes a robot's blocks, hears its actions and diagnostics."""

    def __init__(self, domain, manifest, robot=ROBOT):
        self.robot = robot
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("sensors", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.manifest = manifest
        self.publishers = {
            block.name: self.node.create_publisher(
                FeatureBlock, self.topic(topics.sensor(block.name)), qos.sensor("reliable")
            )
            for block in manifest.blocks
        }
        self.clock = self.node.create_publisher(Clock, topics.CLOCK, qos.CLOCK)
        self.actions = []
        self.diagnostics = []
        self.stopped = []
        self.models = []
        self.step = 0
        hears = self.hear(AgentAction, topics.ACTION, self.actions.append, qos.ACTION)
        self._hears_actions = hears.get_publisher_count
        self.hear(Bool, topics.STOPPED, lambda m: self.stopped.append(m.data), qos.LATCHED)
        self.hear(String, topics.MODEL, lambda m: self.models.append(m.data), qos.LATCHED)
        self.node.create_subscription(
            DiagnosticArray, topics.DIAGNOSTICS, self._on_diagnostics, qos.DIAGNOSTICS
        )

    def topic(self, name):
        return name if name.startswith("/") else f"/{self.robot}/{name}"

    def hear(self, kind, name, callback, profile):
        return self.node.create_subscription(kind, self.topic(name), callback, profile)

    def _on_diagnostics(self, message):
        self.diagnostics.extend(s for s in message.status if s.hardware_id == self.robot)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def until(self, condition, timeout_s=LONG_S, meanwhile=lambda: None):
        give_up = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up, f"timed out; last: {self.diagnostics[-1:]}"
            meanwhile()
            self.executor.spin_once(timeout_sec=0.02)

    def spin(self, seconds):
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def until_listened_to(self):
        """Until the robot is active, and both directions of its topics are found."""
        self.until(lambda: all(p.get_subscription_count() for p in self.publishers.values()))
        self.until(lambda: self._hears_actions() and self.models and self.stopped)
        self.until(lambda: self.state() == State.PRIMARY_STATE_ACTIVE)

    def send(self, observation, episode, step, stamp_s=0.0, *, without=()):
        start = 0
        for block in self.manifest.blocks:
            data = observation[start : start + block.size]
            start += block.size
            if block.name not in without:
                self.send_block(block.name, data, episode, step, stamp_s)

    def send_block(self, name, data, episode, step, stamp_s=0.0):
        values = [float(value) for value in data]
        message = FeatureBlock(episode=episode, step=step, data=values)
        message.header.stamp = Time(sec=int(stamp_s), nanosec=int(stamp_s % 1 * 1e9))
        self.publishers[name].publish(message)

    def send_new(self, *, without=(), age_s=0.0, change=lambda observation: None):
        """The next step of a stream, measured `age_s` ago."""
        self.step += 1
        rng = np.random.default_rng(self.step)
        observation = rng.normal(size=self.manifest.observation_size).astype(np.float32)
        change(observation)
        stamp_s = 0.0 if age_s is None else time.time() - age_s
        self.send(observation, 1, self.step, stamp_s, without=without)
        return observation

    def stream_until(self, condition, **how):
        """Send step after step until something has happened."""
        self.until(condition, meanwhile=lambda: self.send_new(**how))

    def chosen(self):
        """Actions that the policy chose, of those heard."""
        return [a for a in self.actions if a.status == AgentAction.STATUS_POLICY]

    def until_acting(self, **how):
        """Stream until the policy acts on what is sent from now on."""
        first = self.step + 1
        self.stream_until(lambda: any(a.step >= first for a in self.chosen()), **how)

    def part(self, name):
        """Where a block lies in an observation."""
        start = 0
        for block in self.manifest.blocks:
            if block.name == name:
                return slice(start, start + block.size)
            start += block.size
        raise KeyError(name)

    def answer(self, observation, episode, step):
        """The policy's answer to a step, repeating it as the bridge does."""
        self.actions.clear()
        for _ in range(20):
            self.send(observation, episode, step)
            give_up = time.monotonic() + 0.5
            while time.monotonic() < give_up:
                self.executor.spin_once(timeout_sec=0.05)
                for action in self.actions:
                    if (action.episode, action.step) == (episode, step) and not action.status:
                        return action
        raise AssertionError("no answer")

    def values(self):
        """The newest diagnostics."""
        return {i.key: i.value for i in self.diagnostics[-1].values} if self.diagnostics else {}

    def counted(self, prefix):
        """Counts of the newest diagnostics, by reason."""
        values = self.values().items()
        return {k.removeprefix(prefix): int(v) for k, v in values if k.startswith(prefix)}

    def dropped(self):
        """Dropped messages by reason, as the newest diagnostics have them."""
        return self.counted("dropped/")

    def until_reported(self, *words, level=None, meanwhile=lambda: None):
        """Until diagnostics that come from now on say so."""
        self.spin(0.1)  # take in what has come meanwhile
        self.diagnostics.clear()

        def said():
            return any(
                all(word in status.message for word in words) and level in (None, status.level)
                for status in self.diagnostics
            )

        self.until(said, meanwhile=meanwhile)

    def publisher(self, kind, name, profile):
        """A publisher on a topic of the robot that somebody listens to already."""
        publisher = self.node.create_publisher(kind, self.topic(name), profile)
        self.until(lambda: publisher.get_subscription_count() > 0)
        self.spin(SETTLE_S)
        return publisher

    def stop(self, stopped, name=topics.EMERGENCY_STOP):
        """As a person's console does it: latched, and gone afterwards."""
        publisher = self.publisher(Bool, name, qos.LATCHED)
        publisher.publish(Bool(data=stopped))
        self.spin(0.5)
        self.node.destroy_publisher(publisher)

    def override(self, publisher, action):
        publisher.publish(Int32(data=action))

    def call(self, kind, name, request):
        """Call a service of the policy node."""
        return self.call_at(kind, f"/{self.robot}/{topics.POLICY_NODE}/{name}", request)

    def call_at(self, kind, name, request, again_after_s=LONG_S):
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=LONG_S)
        futures = []

        def ask():
            if time.monotonic() >= began_s + len(futures) * again_after_s:
                futures.append(client.call_async(request))

        began_s = time.monotonic()
        self.until(lambda: any(future.done() for future in futures), meanwhile=ask)
        self.node.destroy_client(client)
        return next(future.result() for future in futures if future.done())

    def state(self):
        # Asked again: the node may be the successor of one that was killed, which is still known.
        name = f"/{self.robot}/{topics.POLICY_NODE}/get_state"
        return self.call_at(GetState, name, GetState.Request(), again_after_s=0.5).current_state.id

    def change(self, transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, "change_state", request).success
