"""One robot's student as a managed node: its own sensor topics in, actions out.

configure loads and verifies the bundle and makes the entities, activate starts acting, deactivate
publishes the safe action and stops. Wiring only: the frame is `managed_node`, decisions are made
in `policy_runtime`, people are heard in `console`, peers in `peer_link`, what is reported is put
into words in `health`.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclpy.clock import Clock, JumpThreshold
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from std_msgs.msg import String
from std_srvs.srv import Trigger

from kdmarl_core.bundle import BundlePolicy, Disturbance, Manifest, load_policy
from kdmarl_core.errors import UserError, unknown
from kdmarl_ros import graph, health, qos, topics
from kdmarl_ros.console import Console
from kdmarl_ros.declare import declare, declare_for_blocks, refuse_undeclared
from kdmarl_ros.diagnostics import REPORTED_EVERY_S, Diagnostics
from kdmarl_ros.managed_node import AskedToEndError, ManagedNode
from kdmarl_ros.msg import AgentAction, FeatureBlock, PeerMessage
from kdmarl_ros.parameters import (
    PolicyParameters,
    refuse_bundle_of_another,
    whose_bundle,
)
from kdmarl_ros.peer_link import PeerLink
from kdmarl_ros.policy_runtime import Decision, PolicyRuntime, RuntimeSettings, Status
from kdmarl_ros.qos import NO_EVENTS
from kdmarl_ros.safety import (
    FUTURE_S,
    Overruns,
    StallBehaviour,
    Watchdog,
    default_timeout_s,
)
from kdmarl_ros.security import refuse_open_middleware, trust
from kdmarl_ros.spin import MessagesFirst
from kdmarl_ros.spin import main as spin_main

if TYPE_CHECKING:
    from kdmarl_ros.body import Body
    from kdmarl_ros.sensor_map import Reading

LATENCIES_KEPT = 1000
RECORDED_WITHIN_S = 2.0  # so long does a node that ends wait for a slow disk
LEAST_CHECK_S = 0.005
FLOOD_PERIODS = 10.0  # messages of one topic per period of real time that are too many
# Well above what the fastest sensors of real robots send, 1000 messages per second, and no more
# than a busy machine can take.
REAL_SENSOR_FLOOD_HZ = 1500.0
LINKED_EVERY_S = 0.05
# What of a manifest a reload may not change.
INTERFACE = (
    "task",
    "agent",
    "blocks",
    "actions",
    "safe_action",
    "legal_actions_vary",
    "rate_hz",
    "message",
    "peers",
    "training",  # of robots that tell or hear anything; empty of others
)


class PolicyNode(ManagedNode):
    """`policy_node`: see the module's docstring; parameters in `PolicyParameters`."""

    def __init__(
        self, arguments: Sequence[str] | None = None, group: MessagesFirst | None = None
    ) -> None:
        """As `ManagedNode`."""
        super().__init__(topics.POLICY_NODE, arguments, group)
        self._knows_peers_s = time.monotonic() + graph.DISCOVERY_S
        self._given = declare(self, PolicyParameters, arguments)
        self._namespace = self.get_namespace().strip("/")
        self._runtime: PolicyRuntime | None = None
        self._entities: list[Callable[[], Any]] = []  # each destroys one
        self._body: Body | None = None  # with a sensor map
        self._activations = 0
        self._readings = 0
        self._sensors: list[Subscription[Any]] = []  # in the order of the runtime's inputs
        self._peers: PeerLink | None = None
        self._compute_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._latency_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._floods: Counter[str] = Counter()
        self._measured_ns: dict[Subscription[Any], int] = {}  # newest stamp of each mapped topic
        self._out_of_order: Counter[str] = Counter()  # messages of mapped topics, not newer
        self._clock_reading, self._clock_moved_s = -1, 0.0
        # Steady time: a jump of the system clock or of simulated time must not disarm a timer.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._console = Console(
            self, self._callback_group, self._given.state_directory, self._brake
        )
        self.create_service(Trigger, topics.RELOAD, self._on_reload)
        self._health = health.Health()
        robot = self._namespace or "robot"
        self._diagnostics = Diagnostics(self, f"{robot}: policy", self._namespace)
        self._every(REPORTED_EVERY_S, self._publish_diagnostics)

    def start(self) -> None:
        """Configure and activate, if autostart is set; a `UserError` if that cannot be done."""
        if self._given.autostart:
            self.autostart()

    def close(self) -> None:
        """Leave the robot safe, then wait until it is recorded whether it is stopped."""
        super().close()
        self._await_records(RECORDED_WITHIN_S)

    # What a process of several robots does in another way

    def _await_records(self, seconds: float) -> None:
        """Wait until stops are recorded, so long at most."""
        if not self._console.recorded(seconds):
            self.get_logger().error("ended before it was recorded whether the robot is stopped")

    def _await_delivery(self, seconds: float) -> None:
        """Wait until what was published last has arrived, so long at most."""
        self._action.wait_for_all_acked(Duration(seconds=seconds))

    def _every(self, seconds: float, callback: Callable[[], None]) -> Callable[[], object]:
        """Call again and again, in steady time; returns what ends that."""
        timer = self.create_timer(seconds, callback, clock=self._steady)
        return functools.partial(self.destroy_timer, timer)

    def _when_due(self, decide: Callable[[], None]) -> None:
        """The robot is to decide now."""
        decide()

    # Transitions

    def _configure(self) -> None:
        self._failure = ""
        given = self._given
        refuse_open_middleware(
            given.security, given.allow_unsecured_middleware, self.get_fully_qualified_name()
        )
        policy = self._load()
        manifest = policy.manifest
        self._rate_hz = given.rate_hz or manifest.rate_hz
        self._timeout_s = given.timeout_s or default_timeout_s(self._rate_hz)
        self._peers = PeerLink(self, manifest, recorded=given.recorded)
        self._entities.append(self._peers.close)
        self._runtime = PolicyRuntime(policy, self._settings(manifest), self._peers.hear)
        refuse_undeclared(self)
        self._overruns = Overruns(1.0 / self._rate_hz)
        if given.mode == "real_time":
            self._callback_group.limit_rate(
                REAL_SENSOR_FLOOD_HZ if given.sensor_map else FLOOD_PERIODS * self._rate_hz
            )
        self._console.allow_overrides(len(manifest.actions), given.override_timeout_s)
        self._action = self.create_lifecycle_publisher(
            AgentAction, topics.ACTION, qos.kept(qos.ACTION, for_recorder=given.recorded)
        )
        self._message = AgentAction()
        self._model = self.create_publisher(
            String, topics.MODEL, qos.LATCHED, event_callbacks=NO_EVENTS
        )
        self._entities += [
            functools.partial(self.destroy_lifecycle_publisher, self._action),
            functools.partial(self.destroy_publisher, self._model),
        ]
        profile = qos.sensor(given.sensor_reliability)
        if given.sensor_map:
            self._connect_body(manifest, profile)
        else:
            self._connect_blocks(manifest, profile)
        self._await_peers()
        self._make_timers()
        self.get_logger().info(
            f"configured: {manifest.task} {manifest.agent}, model {manifest.model.sha256[:12]}, "
            f"{policy.vouched}"
        )

    def _connect_blocks(self, manifest: Manifest, profile: QoSProfile) -> None:
        blocks = (block.name for block in manifest.blocks)
        names = topics.inputs(blocks, masked=manifest.legal_actions_vary)
        for index, name in enumerate(names):
            receive = functools.partial(self._on_block, index)
            subscription = self.create_subscription(
                FeatureBlock, topics.sensor(name), receive, profile
            )
            self._sensors.append(subscription)
            self._entities.append(functools.partial(self._destroy_sensor, subscription))

    def _connect_body(self, manifest: Manifest, profile: QoSProfile) -> None:
        # Here, since a robot without a map does without their memory.
        from kdmarl_ros.body import Body
        from kdmarl_ros.sensor_map import load_map

        sensor_map = load_map(
            Path(self._given.sensor_map), manifest, self.get_namespace(), self._timeout_s
        )
        self._body = Body(self, sensor_map, profile, self._on_reading, self._on_body_message)
        self._entities.append(self._close_body)
        if self._given.stamps == "header":
            for subscription in self._body.subscriptions:
                if not hasattr(subscription.msg_type, "header"):
                    raise UserError(
                        f"{self._given.sensor_map}: {subscription.topic_name}: "
                        f"{subscription.msg_type.__name__} has no header, so that its age is not "
                        "known; set stamps:=receive, or take a stamped type"
                    )

    def _await_peers(self) -> None:
        """Say what model flies as soon as peers are linked.

        Whoever waits for the robots, to begin with all of them, waits for the models that fly: by
        then messages go through. A peer that is not there is not waited for.
        """
        self._linked_by_s = time.monotonic() + graph.DISCOVERY_S
        self._stop_linking = self._every(LINKED_EVERY_S, self._on_linked)
        self._entities.append(self._stop_linking)
        self._on_linked()

    def _on_linked(self) -> None:
        assert self._runtime is not None
        assert self._peers is not None
        if self._peers.linked or time.monotonic() >= self._linked_by_s:
            self._stop_linking()
            self._model.publish(String(data=self._runtime.policy.manifest.model.sha256))

    def _load(self) -> BundlePolicy:
        """The bundle, if it is this robot's."""
        given = self._given
        name = self._namespace.rpartition("/")[2]
        trusted = trust(given.security, given.trusted_keys)
        policy = load_policy(Path(given.bundle), trusted, whose_bundle(given, name) or None)
        refuse_bundle_of_another(given, name, policy.manifest.robot)
        return policy

    def _settings(self, manifest: Manifest) -> RuntimeSettings:
        given, where = self._given, self.get_fully_qualified_name()
        by_block = declare_for_blocks(self, [block.name for block in manifest.blocks])
        for name, block in by_block.items():
            if block.limits and not (len(block.limits) == 2 and block.limits[0] < block.limits[1]):
                raise UserError(
                    f"{where}: parameter limits.{name}: {list(block.limits)} must be two numbers, "
                    "the least and the greatest value; correct it"
                )
        other = given.stall_action or manifest.safe_action
        if other not in manifest.actions:
            raise unknown("action", other, manifest.actions, f"{where}: parameter stall_action")
        for peer in manifest.peers:
            if given.message_delay_steps > peer.hold_steps:
                raise UserError(
                    f"{where}: parameter message_delay_steps: messages of {peer.robot} are held "
                    f"for {peer.hold_steps} steps, so that none of {given.message_delay_steps} "
                    "steps ago could be read; lower it"
                )
        stall = StallBehaviour(given.on_stall, given.stall_hold_s, manifest.actions.index(other))
        return RuntimeSettings(
            real_time=given.mode == "real_time",
            timeout_s=self._timeout_s,
            recover_after=given.recover_after,
            limits={
                name: (block.limits[0], block.limits[1])
                for name, block in by_block.items()
                if block.limits
            },
            max_identical={name: block.max_identical for name, block in by_block.items()},
            stall=stall,
            messages=Disturbance(given.message_loss, given.message_delay_steps),
            message_rate_hz=self._rate_hz if given.sensor_map else 0.0,
        )

    def _make_timers(self) -> None:
        period_s = 1.0 / self._rate_hz
        # Often enough that silence is noticed well within a period.
        check_s = max(LEAST_CHECK_S, min(self._timeout_s / 4, period_s / 2))
        periods = {self._check_watchdog: check_s}
        if self._given.mode == "real_time":
            periods = {self._check_inputs: check_s, self._on_period: period_s}
            # In lock-step, steps say what follows what; here it is time.
            forward = Duration(seconds=max(FUTURE_S, self._timeout_s))
            threshold = JumpThreshold(
                min_forward=forward, min_backward=Duration(nanoseconds=-1), on_clock_change=True
            )
            jumps = self.get_clock().create_jump_callback(
                threshold, post_callback=self._on_clock_jump
            )
            self._entities.append(jumps.unregister)
        self._entities += [self._every(seconds, callback) for callback, seconds in periods.items()]

    def _activate(self) -> None:
        assert self._runtime is not None
        for topic, _ in self._own_topics() if self._given.sole_publisher else ():
            others = self._await_rivals(topic)
            if others:
                raise UserError(
                    f"{topic}: {', '.join(others)} publishes there already; end it first, or set "
                    "sole_publisher:=false"
                )
        self._runtime.forget()
        self._measured_ns.clear()
        self._watchdog = Watchdog(self._timeout_s, time.monotonic())
        self._activations += 1
        self._readings = 0
        self._overruns.forget()
        self._last: Decision | None = None
        self._failure = ""
        self._active = True

    def _await_rivals(self, topic: str) -> list[str]:
        """Who else publishes a topic; waits until this process has lived long enough to know."""
        while True:
            others = graph.rivals(self, topic)
            named = bool(others) and not any(graph.UNKNOWN in name for name in others)
            if named or time.monotonic() > self._knows_peers_s:
                return others
            if self._stop.requested:
                raise AskedToEndError(f"{topic}: to end before it was known who publishes there")
            time.sleep(LEAST_CHECK_S)

    def _deactivate(self) -> None:
        if not self._active:
            return
        self._active = False
        assert self._runtime is not None
        try:
            self._send(self._runtime.safe("deactivated"))
        finally:
            if self._body is not None:
                self._body.stop()
        self._await_delivery(qos.ACKNOWLEDGED_WITHIN_S)

    def _cleanup(self) -> None:
        self._deactivate()
        while self._entities:
            self._entities.pop()()
        self._sensors.clear()
        self._measured_ns.clear()
        self._runtime = self._body = self._peers = None

    def _close_body(self) -> None:
        assert self._body is not None
        for subscription in self._body.subscriptions:
            self._callback_group.forget(subscription)
        self._body.close()

    def _destroy_sensor(self, subscription: Subscription[Any]) -> None:
        self._callback_group.forget(subscription)
        self.destroy_subscription(subscription)

    # Acting

    def _on_block(self, index: int, message: FeatureBlock) -> None:
        runtime = self._runtime
        if not self._active or runtime is None:
            return
        now_s = time.monotonic()
        self._count(self._sensors[index])
        age_s = self._age_s(message) if self._given.stamps == "header" else 0.0
        if not runtime.receive(index, message.episode, message.step, message.data, now_s, age_s):
            return
        if self._given.mode == "lock_step" and runtime.complete() is not None:
            self._watchdog.feed(now_s)
            self._when_due(self._decide_step)

    def _decide_step(self) -> None:
        if not self._active or self._runtime is None:
            return
        stamp = self._runtime.complete()
        if stamp is not None:
            self._publish(self._runtime.decide(stamp, time.monotonic()))

    def _count(self, subscription: Subscription[Any]) -> None:
        """A message of a topic has come; one that floods rests for a while."""
        if self._callback_group.message_taken(subscription):
            self._floods[subscription.topic_name] += 1

    def _age_s(self, message: Any) -> float | None:
        stamp = message.header.stamp
        if stamp.sec == 0 and stamp.nanosec == 0:
            return None
        measured_s: float = stamp.sec + stamp.nanosec / 1e9
        return self.get_clock().now().nanoseconds / 1e9 - measured_s

    def _on_body_message(self, subscription: Subscription[Any], message: Any) -> float | None:
        self._count(subscription)
        if self._given.stamps != "header":
            return 0.0
        age_s = self._age_s(message)
        if age_s is None:
            return math.inf  # what bears no stamp is of no use
        stamp = message.header.stamp
        measured_ns = stamp.sec * 10**9 + stamp.nanosec
        newest_ns = self._measured_ns.get(subscription)
        # A newest one that is ahead of the clock is from before the clock was set back.
        set_back = newest_ns is None or newest_ns > self.get_clock().now().nanoseconds
        if not set_back and measured_ns <= newest_ns:
            self._out_of_order[subscription.topic_name] += 1
            return None
        self._measured_ns[subscription] = measured_ns
        return age_s

    def _on_reading(self, reading: Reading) -> None:
        # Real sensors know no episodes: an activation is one, and a reading is a step.
        if self._active and self._runtime is not None:
            self._readings += 1
            stamp = (self._activations, self._readings)
            now_s = time.monotonic()
            age_s = now_s - reading.measured_s
            self._runtime.receive(reading.block, *stamp, reading.values, now_s, age_s)

    def _on_period(self) -> None:
        if not self._active or self._runtime is None:
            return
        now_s = time.monotonic()
        self._watch_clock(now_s)
        self._overruns.begin(now_s)
        self._when_due(self._decide_newest)

    def _decide_newest(self) -> None:
        if self._active and self._runtime is not None:
            self._publish(self._runtime.decide_newest(time.monotonic()))

    def _check_watchdog(self) -> None:
        if not self._active or self._runtime is None:
            return
        now_s = time.monotonic()
        self._watch_clock(now_s)
        if self._watchdog.check(now_s):
            self._publish(self._runtime.stall(now_s))
        elif (
            self._watchdog.tripped
            and self._given.on_stall == "hold_then_safe"
            and self._console.overridden() is None
        ):
            decision = self._runtime.stall(now_s)
            if self._last is None or decision.action != self._last.action:
                self._publish(decision)

    def _check_inputs(self) -> None:
        """In real time: a failure of the inputs does not wait for the period's end.

        A person who chooses the actions does not need them.
        """
        acting = self._active and self._last is not None and not self._last.safe
        if acting and self._runtime is not None and self._console.overridden() is None:
            now_s = time.monotonic()
            if self._runtime.troubles(now_s):
                self._publish(self._runtime.stall(now_s))

    @property
    def _simulated(self) -> bool:
        """Whether time is simulated now: rclpy lets that be set at any time."""
        return bool(self.get_parameter("use_sim_time").value)

    def _watch_clock(self, now_s: float) -> None:
        """Note when simulated time last moved."""
        if self._simulated:
            reading = self.get_clock().now().nanoseconds
            if reading != self._clock_reading:
                self._clock_reading, self._clock_moved_s = reading, now_s

    def _on_clock_jump(self, jump: Any) -> None:
        self.get_logger().warning("the clock has jumped: inputs are forgotten")
        if self._runtime is None:
            return
        self._runtime.forget()
        self._measured_ns.clear()
        if self._body is not None:
            self._body.forget()
        if self._active:
            self._publish(self._runtime.stall(time.monotonic()))

    def _publish(self, decision: Decision) -> None:
        """Send a decision, or what people want instead: a stop wins over all else."""
        assert self._runtime is not None
        assert self._peers is not None
        told = self._runtime.take_told()
        # In lock-step the world goes on with the action: peers must be told before. In real time
        # the action comes first.
        if told is not None and self._given.mode == "lock_step":
            self._peers.tell(told)
        if self._console.stopped:
            decision = self._runtime.stop(decision, "stopped")
        elif (wanted := self._console.overridden()) is not None:
            decision = self._runtime.override(decision, wanted)
        self._send(decision)
        if told is not None and self._given.mode == "real_time":
            self._peers.tell(told)
        if decision.status == Status.POLICY:
            self._compute_s.append(decision.compute_s)
            self._latency_s.append(time.monotonic() - self._runtime.newest_received_s())
        self._peers.fetch()

    def _send(self, decision: Decision) -> None:
        assert self._runtime is not None
        message = self._message
        message.header.stamp = self.get_clock().now().to_msg()
        message.episode, message.step = decision.stamp
        message.action = decision.action
        message.status = decision.status
        message.compute_time_s = decision.compute_s
        self._action.publish(message)
        self._last = decision
        self._runtime.count(decision)
        if self._body is not None:
            self._body.act(None if decision.safe else decision.action)

    def _brake(self) -> None:
        """A person has stopped the robot: it does not wait for its next decision."""
        if self._active and self._runtime is not None:
            self._send(self._runtime.safe("stopped"))

    def _on_reload(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Read the bundle again; keep the model in use if the new one cannot take its place."""
        runtime = self._runtime
        try:
            if runtime is None:
                raise UserError("not configured; configure the node instead")
            if self._active and self._body is not None:
                raise UserError("a base is not to wait for that while it drives; deactivate first")
            policy = self._load()
            _refuse_other_interface(runtime.policy.manifest, policy.manifest)
        except UserError as error:
            response.message = str(error)
            self.get_logger().error(f"cannot reload: {error}")
            return response
        runtime.replace(policy)
        self._model.publish(String(data=policy.manifest.model.sha256))
        response.success = True
        response.message = f"model {policy.manifest.model.sha256[:12]}"
        return response

    # Reporting

    def _publish_diagnostics(self) -> None:
        now_s = time.monotonic()
        self._diagnostics.publish(self._health.report(self._snapshot(now_s), now_s))

    def _snapshot(self, now_s: float) -> health.Snapshot:
        given, runtime = self._given, self._runtime
        told = {"bundle": given.bundle, "mode": given.mode}
        if runtime is None:
            return health.Snapshot(
                self._state, False, told, self._failure, stopped=self._console.reason
            )
        return health.Snapshot(
            state=self._state,
            acting=self._active,
            given=told | {"rate_hz": f"{self._rate_hz:g}", "timeout_s": f"{self._timeout_s:g}"},
            failure=self._failure,
            manifest=runtime.policy.manifest,
            signature=runtime.policy.vouched,
            stopped=self._console.reason,
            overridden=self._console.overridden() is not None,
            clock_paused=self._simulated and now_s - self._clock_moved_s > self._timeout_s / 2,
            problems=self._peer_problems(),
            troubles=runtime.troubles(now_s),
            ages_s=runtime.ages_s(now_s),
            silent_peers=runtime.silent_peers(),
            message_ages=runtime.message_ages(),
            counts=self._counts(runtime),
            missed_periods=self._overruns.missed,
            late_in_a_row=self._overruns.in_a_row,
            compute_s=self._compute_s,
            latency_s=self._latency_s,
        )

    def _counts(self, runtime: PolicyRuntime) -> dict[str, int]:
        groups = {
            "dropped": runtime.drops,
            "decided": runtime.decisions,
            "clipped": runtime.clipped(),
            "flooded": self._floods,
        }
        counts = {
            f"{group}/{reason}": count
            for group, by_reason in groups.items()
            for reason, count in by_reason.items()
        }
        counts |= {f"dropped{topic}/old": n for topic, n in self._out_of_order.items()}
        if self._console.refused_overrides:
            counts["dropped/override"] = self._console.refused_overrides
        return counts

    def _own_topics(self) -> list[tuple[str, type[Any]]]:
        """The topics, and their types, that nobody but this node should publish."""
        commanded = [self._body.commanded] if self._body else []
        told = [(topic, PeerMessage) for topic in (self._peers.told_topics if self._peers else ())]
        return [(self._action.topic_name, AgentAction), *told, *commanded]

    def _peer_problems(self) -> list[str]:
        sensors = self._body.subscriptions if self._body else self._sensors
        heard = [(sensor.topic_name, sensor.msg_type) for sensor in sensors]
        if self._peers:
            heard += [(topic, PeerMessage) for topic in self._peers.heard_topics]
        found = graph.problems(self, heard, self._own_topics())
        if self._body and (trouble := self._body.trouble()):
            found.append(trouble)
        if self._console.trouble:
            found.append(self._console.trouble)
        return found


def _refuse_other_interface(old: Manifest, new: Manifest) -> None:
    """Raise a `UserError` that names all in which a model cannot take another's place."""
    differing = [
        f"{key} {getattr(new, key)} instead of {getattr(old, key)}"
        for key in INTERFACE
        if getattr(new, key) != getattr(old, key)
    ]
    if differing:
        raise UserError(
            f"the new model has {'; '.join(differing)}; configure the node anew for it"
        )


def main(args: list[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return spin_main(PolicyNode, args)


if __name__ == "__main__":
    sys.exit(main())
