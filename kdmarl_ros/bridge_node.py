"""A simulated task as topics: sensor blocks out, actions in.

In lock-step each step is published, answered by every robot, and applied. What is not answered is
repeated, so that a robot that joins or comes back finds the step that the team waits for; after
the deadline its safe action is used and the miss is counted. In real time the task is stepped at
its rate, whoever has answered, with each robot's newest action.

Episodes are appended to a results file when they end, and a bridge that is started again goes on
behind the last one.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rclpy.clock import Clock as RosClock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import MarkerArray

from kdmarl_core.errors import UserError
from kdmarl_core.evaluate import episode_seed
from kdmarl_core.sensors import team_sensors
from kdmarl_core.tasks import View
from kdmarl_core.team import load_team
from kdmarl_ros import graph, health, oversight, qos, results, topics
from kdmarl_ros.declare import declare, refuse_undeclared
from kdmarl_ros.diagnostics import REPORTED_EVERY_S, Diagnostics
from kdmarl_ros.disturbance import Disturbance
from kdmarl_ros.markers import OVERRIDDEN, POLICY, SAFE, SILENT, Choice, scene_markers
from kdmarl_ros.msg import AgentAction, StepResult
from kdmarl_ros.parameters import BridgeParameters
from kdmarl_ros.qos import NO_EVENTS
from kdmarl_ros.robot_link import STATUSES, RobotLink
from kdmarl_ros.security import refuse_open_middleware
from kdmarl_ros.simulation import SimulationSettings
from kdmarl_ros.spin import IDLE_WAKE_S, MessagesFirst, Stop
from kdmarl_ros.spin import main as spin_main

REPEAT_AFTER_S = 0.1
OTHERS_HEARD = 4  # callbacks per step of a late bridge beside one for each robot's action
LATE_WARNED_EVERY_S = 10.0
STATUS_COLOURS = dict(zip(STATUSES, (POLICY, SAFE, OVERRIDDEN), strict=True))
DRAW_EVERY_S = 1 / 30  # at most: a picture costs as much as a step, and nobody sees more
RECORDED_WITHIN_S = 4.0  # acknowledgements are asked for every 3 s


class BridgeNode(Node):
    """`bridge_node`: see the module's docstring; parameters in `BridgeParameters`."""

    def __init__(self) -> None:
        self._callback_group = MessagesFirst()  # before rclpy makes the node's services
        super().__init__(topics.BRIDGE_NODE)
        self._given = declare(self, BridgeParameters)
        refuse_undeclared(self)
        refuse_open_middleware(
            self._given.security,
            self._given.allow_unsecured_middleware,
            self.get_fully_qualified_name(),
        )
        self._path = Path(self._given.results)
        self._team = load_team(self._given.team)
        self._env = self._team.task.make_reference()
        self._links = self._make_links()
        self._step_result = self.create_publisher(
            StepResult,
            topics.STEP,
            qos.kept(qos.STEP_RESULT, for_recorder=self._given.recorded),
            event_callbacks=NO_EVENTS,
        )
        self._clock_topic = self.create_publisher(
            Clock, topics.CLOCK, qos.CLOCK, event_callbacks=NO_EVENTS
        )
        self._markers = self.create_publisher(
            MarkerArray, topics.MARKERS, qos.LATCHED, event_callbacks=NO_EVENTS
        )
        self._diagnostics = Diagnostics(self, "swarm: bridge")
        steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPORTED_EVERY_S, self._publish_diagnostics, clock=steady)
        self._make_oversight()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        rate_hz = self._given.rate_hz or self._team.task.spec.rate_hz
        self._tick_s = 1.0 / rate_hz
        self._next_tick_s: float | None = None  # None: a whole period follows
        self._period_ns = round(1e9 / self._team.task.spec.rate_hz)
        self._how = _how(self._given, rate_hz)
        self._now = Time()
        self._played = 0  # episodes, with those of earlier runs
        self._last: list[results.EpisodeResult] = []  # the newest of them, if there is one
        self._unsaved: list[results.EpisodeResult] = []
        self._at = (0, 0)  # episode, step
        self._draw_next_s = 0.0
        self._steps = self._reported_steps = 0

    @property
    def default_callback_group(self) -> MessagesFirst:
        """The group of all entities, rclpy's own services among them."""
        return self._callback_group

    def run(self, stop: Stop) -> None:
        """Play all episodes that the results file does not hold yet."""
        earlier = results.read(self._path)
        results.check_same_run(
            self._path,
            earlier,
            self._team.name,
            lambda index: episode_seed(self._given.seed, index),
            self._how,
        )
        self._played, self._last = len(earlier), earlier[-1:]
        if self._played >= self._given.episodes:
            self.get_logger().warning(
                f"{self._path}: holds all {self._given.episodes} episodes already: nothing is "
                "played; give another results file to play them again"
            )
            return
        self._await_robots(stop, earlier)
        if self._given.recorded:
            self._await_recorder(stop)
        del earlier
        for index in range(self._played, self._given.episodes):
            result = self._play(index, stop)
            if result is None:
                break
            results.check_same_models(self._path, self._last, self._robot_names(), result.models)
            self._keep(result)
        if self._unsaved:
            raise UserError(
                f"{self._path}: the last {len(self._unsaved)} episodes could not be written; make "
                "room, then start again to play them"
            )

    def close(self) -> None:
        """Nothing moves without the bridge's steps; but what is recorded must have arrived.

        A process that ends takes along what others have yet to fetch from its shared memory.
        """
        if not self._given.recorded:
            return
        until_s = time.monotonic() + RECORDED_WITHIN_S
        sensors = (publisher for link in self._links for publisher in link.publishers)
        for publisher in (*sensors, self._step_result):
            left_s = max(until_s - time.monotonic(), 0.0)
            publisher.wait_for_all_acked(Duration(seconds=left_s))

    def _make_links(self) -> list[RobotLink]:
        links = []
        for index, (robot, sensors) in enumerate(
            zip(self._team.robots, team_sensors(self._team), strict=True)
        ):
            safe = robot.agent.actions.index(robot.safe_action)
            disturbance = Disturbance(self._given, index, safe)
            masked = self._team.task.spec.legal_actions_vary
            recorded = self._given.recorded
            links.append(
                RobotLink(self, robot, sensors, disturbance, masked=masked, recorded=recorded)
            )
        return links

    def _spin(self, timeout_s: float) -> None:
        self._executor.spin_once(timeout_sec=max(timeout_s, 0.0))
        self._callback_group.callback_done()

    def _robot_names(self) -> list[str]:
        return [link.robot.name for link in self._links]

    def _await_robots(self, stop: Stop, earlier: Sequence[results.EpisodeResult]) -> None:
        give_up_s = time.monotonic() + self._given.join_timeout_s
        while not stop.requested:
            missing = [link.robot.name for link in self._links if not link.present()]
            if not missing:
                break
            if time.monotonic() > give_up_s:
                raise UserError(
                    f"{self.get_fully_qualified_name()}: no {' and '.join(missing)} after "
                    f"{self._given.join_timeout_s:g} s; start the robots, or raise join_timeout_s"
                )
            self._spin(IDLE_WAKE_S)
        models = [link.model for link in self._links]
        results.check_same_models(self._path, earlier, self._robot_names(), models)

    # Playing

    def _await_recorder(self, stop: Stop) -> None:
        give_up_s = time.monotonic() + graph.DISCOVERY_S
        while not stop.requested and not all(link.present(listeners=2) for link in self._links):
            if time.monotonic() > give_up_s:
                self.get_logger().warning("no recorder listens: the beginning is not recorded")
                return
            self._spin(IDLE_WAKE_S)

    def _play(self, index: int, stop: Stop) -> results.EpisodeResult | None:
        """One episode; None if asked to stop before its end."""
        seed = episode_seed(self._given.seed, index)
        begun = time.perf_counter()
        view = self._env.reset(seed)
        for link in self._links:
            link.begin(seed)
        record = _Record()
        step, done, outcome = 0, False, ""
        real_time = self._given.mode == "real_time"
        while not done:
            self._wait_while_paused(stop)
            self._at = (index, step)
            self._show(view, index, step)
            shown_s = time.perf_counter()
            if real_time:
                self._await_tick(stop)
            else:
                self._await_answers(shown_s, stop)
            if stop.requested:
                return None
            hold_s = self._given.step_deadline_s if real_time else None
            choices = [link.choice(hold_s) for link in self._links]
            actions = record.note(self._links, choices, shown_s)
            self._draw(choices, actions)
            view, reward, done, outcome = self._env.step(actions)
            record.team_return += reward
            self._tell(index, step, reward, done, outcome)
            step += 1
            self._steps += 1
        return results.EpisodeResult(
            team=self._team.name,
            models=tuple(link.model for link in self._links),
            index=index,
            seed=seed,
            team_return=record.team_return,
            steps=step,
            outcome=outcome,
            actions=tuple(record.actions),
            latencies_s=tuple(record.latencies_s),
            compute_s=tuple(record.compute_s),
            missed_deadlines=record.missed,
            safe_actions=record.safe,
            overridden_actions=record.overridden,
            illegal_actions=record.illegal,
            seconds=time.perf_counter() - begun,
            how=self._how,
        )

    def _show(self, view: View, episode: int, step: int) -> None:
        self._now = Time(nanoseconds=self._now.nanoseconds + self._period_ns)
        self._clock_topic.publish(Clock(clock=self._now.to_msg()))
        for link, observation, mask in zip(
            self._links, view.observations, view.action_masks, strict=True
        ):
            link.show(observation, mask, episode, step, self._now)

    def _draw(self, choices: list[AgentAction | None], actions: list[int]) -> None:
        now_s = time.monotonic()
        if now_s >= self._draw_next_s and self._markers.get_subscription_count():
            self._draw_next_s = now_s + DRAW_EVERY_S
            drawn = [
                _drawn(link, choice, action)
                for link, choice, action in zip(self._links, choices, actions, strict=True)
            ]
            self._markers.publish(scene_markers(self._env.scene(), drawn, self._now))

    def _await_answers(self, shown_s: float, stop: Stop) -> None:
        deadline_s = shown_s + self._given.step_deadline_s
        repeat_s = shown_s + REPEAT_AFTER_S
        while any(link.answer is None for link in self._links) and not stop.requested:
            now_s = time.perf_counter()
            if now_s >= deadline_s:
                return
            if now_s >= repeat_s:
                repeat_s = now_s + REPEAT_AFTER_S
                for link in self._links:
                    if link.answer is None:
                        link.repeat()
            self._spin(min(deadline_s, repeat_s) - now_s)

    def _await_tick(self, stop: Stop) -> None:
        """Until the next period ends; a bridge that is late does not hurry to catch up.

        It hears all the same what has come: each robot's newest action, and what people want.
        """
        now_s = time.monotonic()
        due_s = (now_s if self._next_tick_s is None else self._next_tick_s) + self._tick_s
        self._next_tick_s = max(due_s, now_s)
        if due_s <= now_s:
            self.get_logger().warning(
                "steps take longer than their period: the rate is not held",
                throttle_duration_sec=LATE_WARNED_EVERY_S,
            )
            for _ in range(len(self._links) + OTHERS_HEARD):
                self._spin(0.0)
            return
        while now_s < self._next_tick_s and not stop.requested:
            self._spin(min(self._next_tick_s - now_s, IDLE_WAKE_S))
            now_s = time.monotonic()

    def _tell(self, episode: int, step: int, reward: float, done: bool, outcome: str) -> None:
        message = StepResult(
            episode=episode, step=step, team_reward=reward, done=done, outcome=outcome
        )
        message.header.stamp = self._now.to_msg()
        self._step_result.publish(message)

    def _keep(self, result: results.EpisodeResult) -> None:
        """Write it, or keep it until it can be written: a full disk does not stop the robots."""
        self._played, self._last = self._played + 1, [result]
        self._unsaved.append(result)
        try:
            while self._unsaved:
                results.append(self._path, self._unsaved[0])
                del self._unsaved[0]
        except OSError as error:
            self.get_logger().warning(
                f"{self._path}: cannot be written ({error.strerror}); {len(self._unsaved)} "
                "episodes wait in memory"
            )

    # People

    def _make_oversight(self) -> None:
        self._stops = oversight.latch(
            self._given.state_directory, oversight.SWARM, oversight.SWARM
        )
        self._stop_topic = self.create_publisher(
            Bool, topics.SWARM_STOP, qos.LATCHED, event_callbacks=NO_EVENTS
        )
        if self._stops.stopped:
            self._stop_topic.publish(Bool(data=True))
        self._paused = False
        self._single_steps = 0
        self.create_service(SetBool, topics.SWARM_STOP, self._on_stop)
        self.create_service(SetBool, topics.PAUSE, self._on_pause)
        self.create_service(Trigger, topics.SINGLE_STEP, self._on_single_step)

    def _on_stop(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:  # the robots first, the record after it; a release the other way round
            self._stop_topic.publish(Bool(data=True))
        trouble = self._stops.set(oversight.SWARM, request.data)
        if not self._stops.stopped:
            self._stop_topic.publish(Bool(data=False))
        response.success = not trouble
        response.message = trouble or (
            f"stopped {self._stops.reason}" if self._stops.stopped else "released"
        )
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused, self._single_steps = request.data, 0
        response.success = True
        response.message = f"{'paused' if request.data else 'running'} at {self._where()}"
        return response

    def _on_single_step(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        response.success = self._paused
        if self._paused:
            self._single_steps += 1
            response.message = f"stepping from {self._where()}"
        else:
            response.message = "not paused; pause first"
        return response

    def _wait_while_paused(self, stop: Stop) -> None:
        while self._paused and not self._single_steps and not stop.requested:
            self._next_tick_s = None  # robots that stood still need time to answer
            self._spin(IDLE_WAKE_S)
        self._single_steps = max(self._single_steps - 1, 0)

    def _where(self) -> str:
        return f"episode {self._at[0]}, step {self._at[1]}"

    # Reporting

    def _publish_diagnostics(self) -> None:
        lost = [link.robot.name for link in self._links if not link.alive]
        refused = sum(link.refused for link in self._links)
        others = graph.rivals(self, self._step_result.topic_name)
        errors = [f"{name} is not there" for name in lost]
        errors += [f"another bridge plays, too: {name}" for name in others]
        errors += [f"stopped {self._stops.reason}"] if self._stops.stopped else []
        warnings = ["paused"] if self._paused else []
        warnings += [f"{len(self._unsaved)} episodes are not saved"] if self._unsaved else []
        level = health.ERROR if errors else health.WARN if warnings else health.OK
        steps, self._reported_steps = self._steps - self._reported_steps, self._steps
        values = {
            "team": self._team.name,
            "mode": self._given.mode,
            "episode": str(self._at[0]),
            "step": str(self._at[1]),
            "steps_per_second": f"{steps / REPORTED_EVERY_S:.1f}",
            "finished_episodes": str(self._played),
            "unsaved_episodes": str(len(self._unsaved)),
            "refused_actions": str(refused),
            **{f"model_sha256/{link.robot.name}": link.model for link in self._links},
        }
        message = "; ".join(errors or warnings) or "playing"
        self._diagnostics.publish(health.Report(level, message, values))


def _how(given: BridgeParameters, rate_hz: float) -> str:
    """Mode and disturbances, as results say them."""
    mode = results.LOCK_STEP if given.mode == "lock_step" else f"{given.mode} at {rate_hz:g} Hz"
    changed = [
        f"{item.name} {getattr(given, item.name):g}"
        for item in dataclasses.fields(SimulationSettings)
        if getattr(given, item.name) != item.default
    ]
    return ", ".join([mode, *changed])


def _drawn(link: RobotLink, choice: AgentAction | None, action: int) -> Choice:
    """What a robot does at this step, as it is drawn."""
    status = SILENT if choice is None else STATUS_COLOURS[choice.status]
    return Choice(link.robot.name, link.robot.agent.actions[action], status)


class _Record:
    """What is noted of an episode while it goes on."""

    def __init__(self) -> None:
        self.team_return = 0.0
        self.actions: list[tuple[int, ...]] = []
        self.latencies_s: list[float] = []
        self.compute_s: list[float] = []
        self.missed = 0
        self.safe = 0
        self.overridden = 0
        self.illegal = 0

    def note(
        self, links: list[RobotLink], choices: list[AgentAction | None], shown_s: float
    ) -> list[int]:
        """Note a step; returns the actions to apply."""
        actions = []
        for link, choice in zip(links, choices, strict=True):
            action, legal = link.apply(choice)
            actions.append(action)
            self.illegal += not legal
            if choice is None:
                self.missed += 1
                continue
            self.safe += choice.status == AgentAction.STATUS_SAFE
            self.overridden += choice.status == AgentAction.STATUS_OVERRIDE
            if link.answer is not None:
                self.latencies_s.append(link.answered_s - shown_s)
                self.compute_s.append(link.answer.compute_time_s)
        self.actions.append(tuple(actions))
        return actions


def main(args: list[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return spin_main(BridgeNode, args)


if __name__ == "__main__":
    sys.exit(main())
