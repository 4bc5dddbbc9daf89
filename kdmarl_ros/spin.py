"""The frame of every node's main(): init, run, a clean end, one line for the user's mistakes."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import rclpy
from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.service import Service
from rclpy.signals import SignalHandlerOptions
from rclpy.waitable import Waitable

from kdmarl_core.errors import EXIT_USER_ERROR, UserError
from kdmarl_ros.security import ENABLE, KEYSTORE

IDLE_WAKE_S = 0.1  # how soon a signal is noticed while nothing arrives
OVERDUE_S = 0.05  # how late a wait may end, and how often that is looked at
TURN_EVERY_S = 0.1
TURN_CALLBACKS = 20

# What one topic may send, unless said otherwise: several times what a lock-step swarm needs.
MESSAGES_PER_S = 2000.0
WINDOW_S = 0.05

# Set to a process number by a supervisor whose nodes must not outlive it.
PARENT_VARIABLE = "KDMARL_PARENT"
_PR_SET_PDEATHSIG = 1


class Stop:
    """True once SIGINT or SIGTERM has come."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ask for the end; also a signal handler."""
        self.requested = True


class MessagesFirst(CallbackGroup):
    """Services and QoS events rest while messages stream in, but for a turn every 0.1 s.

    For each wake-up rclpy gathers all that a node waits for anew, and a managed node has several
    times more services and event handlers than sensors. Left out of most waits they cost nothing;
    when nothing streams they are waited for like all else. The node's one thread must call
    `callback_done` after every `spin_once`.

    A topic that floods rests, too: once it has had its share of a short time, it is left out of
    the waits until that time is over, and its newest message is taken then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next_turn_s = 0.0
        self._left = TURN_CALLBACKS
        self._patient: set[object] = set()
        self._window_ends_s = 0.0
        self._window_messages = WINDOW_S * MESSAGES_PER_S
        self._taken: Counter[object] = Counter()  # messages of this window
        self._flooding: set[object] = set()

    def be_patient(self, entity: object) -> None:
        """Let this subscription rest as services do."""
        self._patient.add(entity)

    def limit_rate(self, messages_per_s: float) -> None:
        """How much one topic may send before it floods."""
        self._window_messages = max(2.0, WINDOW_S * messages_per_s)

    def forget(self, entity: object) -> None:
        """It is about to be destroyed."""
        self._patient.discard(entity)
        self._taken.pop(entity, None)
        self._flooding.discard(entity)

    def message_taken(self, subscription: object) -> bool:
        """A message has come; True if the topic floods and rests from now on for a while."""
        self._taken[subscription] += 1
        if self._taken[subscription] < self._window_messages:
            return False
        self._flooding.add(subscription)
        return True

    def resting(self, subscription: object) -> bool:
        """Whether a topic floods and rests."""
        return subscription in self._flooding

    def callback_done(self) -> None:
        """A callback has run, or the wait has timed out."""
        # A turn is counted in callbacks so that even a slow robot gets through all that was ready
        # before it ends.
        self._left -= 1
        now_s = time.monotonic()
        if now_s >= self._next_turn_s:
            self._next_turn_s = now_s + TURN_EVERY_S
            self._left = TURN_CALLBACKS
        if now_s >= self._window_ends_s:
            self._window_ends_s = now_s + WINDOW_S
            self._taken.clear()
            self._flooding.clear()

    def wait_s(self) -> float:
        """How long the next wait may last."""
        return WINDOW_S if self._flooding else IDLE_WAKE_S

    def can_execute(self, entity: object) -> bool:
        """Whether rclpy may wait for it, and run it, now."""
        if entity in self._flooding:
            return False
        if self._left > 0:
            return True
        return not isinstance(entity, (Service, Waitable)) and entity not in self._patient

    def beginning_execution(self, entity: object) -> bool:
        """Nothing excludes anything: there is one thread."""
        return True

    def ending_execution(self, entity: object) -> None:
        """Nothing to release."""


class Polled(CallbackGroup):
    """Subscriptions that nobody is woken up for: what has come is taken by hand when needed."""

    def can_execute(self, entity: object) -> bool:
        """Never: rclpy leaves them out of its waits."""
        return False

    def beginning_execution(self, entity: object) -> bool:
        """Nothing is executed."""
        return False

    def ending_execution(self, entity: object) -> None:
        """Nothing is executed."""


class Spinning(Protocol):
    """What `PunctualSpinner` needs of an executor."""

    def spin_once(self, timeout_sec: float) -> None:
        """Wait for so long at most, and do what has come."""

    def wake(self) -> None:
        """End a wait, from another thread."""


class PunctualSpinner:
    """Spins an executor whose waits end in time even if the system's clock is set meanwhile.

    The middleware waits until a time of the system's clock. Set back by an hour during a wait, it
    would wait for an hour, and no timer would run. A thread that goes by steady time wakes it.
    """

    def __init__(self, executor: Spinning) -> None:
        self._executor = executor
        self._due_s = math.inf
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def spin_once(self, timeout_s: float) -> None:
        """As the executor's own, with the wait's end guarded."""
        self._due_s = time.monotonic() + timeout_s + OVERDUE_S
        try:
            self._executor.spin_once(timeout_s)
        finally:
            self._due_s = math.inf

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(OVERDUE_S):
            if time.monotonic() > self._due_s:
                self._executor.wake()


class Runnable(Protocol):
    """What `main` needs of a node."""

    def run(self, stop: Stop) -> None:
        """Work until `stop.requested`."""

    def close(self) -> None:
        """Leave the robot safe; the context is still alive."""

    def destroy_node(self) -> None:
        """Free what ROS holds of it."""


def main(make_node: Callable[[], Runnable], args: list[str] | None = None) -> int:
    """Run one node to its end; returns the exit code.

    Where topics are to be secured and cannot be, that is one line, too.
    """
    try:
        return _main(make_node, args)
    except rclpy_implementation.RCLError as error:
        if os.environ.get(ENABLE, "").lower() != "true":
            raise
        reason = " ".join(str(error).split()).split(", at /")[0]
        print(f"kdmarl: topics cannot be secured: {reason}; see {KEYSTORE}", file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        # A node is part of cycles. Unless they are found now, the middleware never hears of the
        # end: others take this process for alive for 20 s more, and its shared memory stays.
        gc.unfreeze()
        gc.collect()


def _main(make_node: Callable[[], Runnable], args: list[str] | None) -> int:
    """Run one node.

    Signals set a flag instead of shutting the context down, so that `close` can still publish the
    safe action (fault table, row 22).
    """
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop.request)
    _die_with_parent(stop)
    try:
        _init(args)
        node = make_node()
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: never scan it again
        try:
            node.run(stop)
        finally:
            node.close()
            node.destroy_node()
    except UserError as error:
        print(f"kdmarl: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        rclpy.try_shutdown()
    return 0


def _init(args: list[str] | None) -> None:
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # a parameter file that is missing or no YAML
        if "SECURITY ERROR" in str(error):
            raise
        reason = str(error).split(", at /")[0]
        raise UserError(f"{reason}; correct the command line or the parameter file") from None


def _die_with_parent(stop: Stop) -> None:
    """Have the kernel send SIGTERM when the supervisor that started this process is gone."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != parent:  # it was gone before we asked
        stop.request()
