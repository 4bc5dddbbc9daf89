"""One robot's student as a managed node: its own sensor topics in, actions out.

configure loads and verifies the bundle and makes the entities, activate starts acting, deactivate
publishes the safe action and stops. Wiring only: decisions are made in `policy_runtime`.
"""

from __future__ import annotations

import functools
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from kdmarl_core.bundle import load_policy
from kdmarl_core.errors import UserError
from kdmarl_ros import qos, topics
from kdmarl_ros.msg import AgentAction, FeatureBlock
from kdmarl_ros.parameters import PolicyParameters, declare
from kdmarl_ros.policy_runtime import Decision, PolicyRuntime
from kdmarl_ros.safety import Watchdog, default_timeout_s
from kdmarl_ros.security import refuse_open_middleware, trust
from kdmarl_ros.spin import MessagesFirst, Stop
from kdmarl_ros.spin import main as spin_main

DIAGNOSTICS_PERIOD_S = 1.0
LATENCIES_KEPT = 1000
IDLE_WAKE_S = 0.1  # how soon a signal is noticed while nothing arrives
ACKNOWLEDGED_WITHIN_S = 0.2


class PolicyNode(LifecycleNode):
    """`policy_node`: see the module's docstring; parameters in `PolicyParameters`."""

    def __init__(self) -> None:
        self._callback_group = MessagesFirst()  # before rclpy makes the node's services
        super().__init__(topics.POLICY_NODE)
        self._given = declare(self, PolicyParameters)
        self._runtime: PolicyRuntime | None = None
        self._entities: list[Callable[[], Any]] = []  # each destroys one
        self._active = False
        self._refusal: UserError | None = None
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)

    @property
    def default_callback_group(self) -> MessagesFirst:
        """The group of all entities, rclpy's own services among them."""
        return self._callback_group

    def run(self, stop: Stop) -> None:
        """Spin until asked to stop; configure and activate first if autostart is set."""
        executor = SingleThreadedExecutor()
        executor.add_node(self)
        if self._given.autostart:
            self._autostart()
        while not stop.requested:
            executor.spin_once(timeout_sec=IDLE_WAKE_S)
            self._callback_group.callback_done()
        executor.remove_node(self)

    def close(self) -> None:
        """Publish the safe action before the context goes."""
        if self._active:
            self.trigger_deactivate()

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and verify the bundle, make publishers, subscriptions and timers."""
        return self._guarded("configure", self._configure, state, super().on_configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start acting."""
        return self._guarded("activate", self._activate, state, super().on_activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Publish the safe action, then nothing more."""
        return self._guarded("deactivate", self._deactivate, state, super().on_deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and all entities."""
        return self._guarded("clean up", self._cleanup, state, super().on_cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave the robot safe."""
        return self._guarded("shut down", self._deactivate, state, super().on_shutdown)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave the robot safe and start over from unconfigured."""
        return self._guarded("recover", self._cleanup, state, super().on_error)

    def _guarded(
        self,
        what: str,
        work: Callable[[], None],
        state: LifecycleState,
        then: Callable[[LifecycleState], TransitionCallbackReturn],
    ) -> TransitionCallbackReturn:
        # rclpy swallows what a transition raises: say it here.
        try:
            work()
            return then(state)
        except UserError as error:
            self._refusal = error
            self.get_logger().error(f"cannot {what}: {error}")
        except Exception:
            self.get_logger().error(f"cannot {what}:\n{traceback.format_exc()}")
        return TransitionCallbackReturn.FAILURE

    def _autostart(self) -> None:
        succeeded = TransitionCallbackReturn.SUCCESS
        if self.trigger_configure() != succeeded or self.trigger_activate() != succeeded:
            raise self._refusal or UserError(
                f"{self.get_fully_qualified_name()}: autostart failed; the cause is logged above"
            )

    def _configure(self) -> None:
        self._cleanup()
        given = self._given
        refuse_open_middleware(
            given.security, given.allow_unsecured_middleware, self.get_fully_qualified_name()
        )
        robot = self.get_namespace().strip("/")
        policy = load_policy(Path(given.bundle), trust(given.security, given.trusted_keys), robot)
        manifest = policy.manifest
        self._rate_hz = given.rate_hz or manifest.rate_hz
        self._timeout_s = given.timeout_s or default_timeout_s(self._rate_hz)
        self._runtime = PolicyRuntime(policy)
        self._vouched = policy.vouched
        self._safe_index = manifest.safe_index
        self._action = self.create_lifecycle_publisher(AgentAction, topics.ACTION, qos.ACTION)
        self._message = AgentAction()
        self._diagnostics = self.create_publisher(
            DiagnosticArray, topics.DIAGNOSTICS, qos.DIAGNOSTICS
        )
        self._entities += [
            functools.partial(self.destroy_lifecycle_publisher, self._action),
            functools.partial(self.destroy_publisher, self._diagnostics),
        ]
        profile = qos.sensor(given.sensor_reliability)
        for index, block in enumerate(manifest.blocks):
            receive = functools.partial(self._on_block, index)
            subscription = self.create_subscription(
                FeatureBlock, topics.sensor(block.name), receive, profile
            )
            self._entities.append(functools.partial(self.destroy_subscription, subscription))
        self._make_timers()
        self.get_logger().info(
            f"configured: {manifest.task} {manifest.agent}, model {manifest.model.sha256[:12]}, "
            f"{policy.vouched}"
        )

    def _make_timers(self) -> None:
        # Steady time: a jump of the system clock or of simulated time must not disarm the
        # watchdog.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        periods = {
            self._check_watchdog: self._timeout_s / 4,
            self._publish_diagnostics: DIAGNOSTICS_PERIOD_S,
        }
        if self._given.mode == "real_time":
            periods[self._on_period] = 1.0 / self._rate_hz
        for callback, period_s in periods.items():
            timer = self.create_timer(period_s, callback, clock=steady)
            self._entities.append(functools.partial(self.destroy_timer, timer))

    def _activate(self) -> None:
        self._watchdog = Watchdog(self._timeout_s, time.monotonic())
        self._active = True

    def _deactivate(self) -> None:
        if not self._active:
            return
        self._active = False
        assert self._runtime is not None
        self._publish(self._runtime.safe("deactivated"))
        self._action.wait_for_all_acked(Duration(seconds=ACKNOWLEDGED_WITHIN_S))

    def _cleanup(self) -> None:
        self._deactivate()
        while self._entities:
            self._entities.pop()()
        self._runtime = None

    # Acting

    def _on_block(self, index: int, message: FeatureBlock) -> None:
        runtime = self._runtime
        if not self._active or runtime is None:
            return
        now_s = time.monotonic()
        if not runtime.receive(index, message.episode, message.step, message.data, now_s):
            return
        if self._given.mode == "lock_step":
            stamp = runtime.complete()
            if stamp is not None:
                self._watchdog.feed(now_s)
                self._publish(runtime.decide(stamp))

    def _on_period(self) -> None:
        if self._active and self._runtime is not None:
            self._publish(self._runtime.decide_newest(time.monotonic(), self._timeout_s))

    def _check_watchdog(self) -> None:
        lock_step = self._given.mode == "lock_step"
        if self._active and lock_step and self._watchdog.check(time.monotonic()):
            assert self._runtime is not None
            self._publish(self._runtime.safe("stale"))

    def _publish(self, decision: Decision) -> None:
        message = self._message
        message.header.stamp = self.get_clock().now().to_msg()
        message.episode, message.step = decision.stamp
        message.action = decision.action
        message.status = AgentAction.STATUS_SAFE if decision.safe else AgentAction.STATUS_POLICY
        message.compute_time_s = decision.compute_s
        self._action.publish(message)
        self._latencies_s.append(decision.compute_s)

    # Reporting

    def _publish_diagnostics(self) -> None:
        runtime = self._runtime
        if runtime is None:
            return
        ages = runtime.ages_s(time.monotonic())
        level, summary = self._health(ages)
        ordered_ms = [1e3 * seconds for seconds in sorted(self._latencies_s)] or [0.0]
        last = len(ordered_ms) - 1
        values = {
            "bundle": self._given.bundle,
            "mode": self._given.mode,
            "signature": self._vouched,
            "compute_p50_ms": f"{ordered_ms[round(0.50 * last)]:.3f}",
            "compute_p99_ms": f"{ordered_ms[round(0.99 * last)]:.3f}",
            **{f"age_s/{name}": f"{age:.3f}" for name, age in ages.items()},
            **{f"dropped/{reason}": str(count) for reason, count in runtime.drops.items()},
            **{f"decided/{reason}": str(count) for reason, count in runtime.decisions.items()},
        }
        status = DiagnosticStatus(
            level=level,
            name=f"{self.get_namespace().strip('/') or 'robot'}: policy",
            hardware_id=self.get_namespace().strip("/"),
            message=summary,
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _health(self, ages_s: dict[str, float]) -> tuple[bytes, str]:
        if not self._active:
            return DiagnosticStatus.OK, "inactive"
        waiting = [name for name, age in ages_s.items() if age == float("inf")]
        if waiting:
            return DiagnosticStatus.WARN, f"waiting for {', '.join(waiting)}"
        stale = [f"{n} ({age:.1f} s)" for n, age in ages_s.items() if age > self._timeout_s]
        if stale:
            return DiagnosticStatus.ERROR, f"safe action: stale {', '.join(stale)}"
        return DiagnosticStatus.OK, "acting"


def main(args: list[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return spin_main(PolicyNode, args)


if __name__ == "__main__":
    sys.exit(main())
