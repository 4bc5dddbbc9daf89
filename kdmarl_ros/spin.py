"""The frame of every node's main(): init, run, a clean end, one line for the user's mistakes."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
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

TURN_EVERY_S = 0.1
TURN_CALLBACKS = 20

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
    """

    def __init__(self) -> None:
        super().__init__()
        self._next_turn_s = 0.0
        self._left = TURN_CALLBACKS

    def callback_done(self) -> None:
        """A callback has run, or the wait has timed out."""
        # A turn is counted in callbacks so that even a slow robot gets through all that was ready
        # before it ends.
        self._left -= 1
        now_s = time.monotonic()
        if now_s >= self._next_turn_s:
            self._next_turn_s = now_s + TURN_EVERY_S
            self._left = TURN_CALLBACKS

    def can_execute(self, entity: object) -> bool:
        """Whether rclpy may wait for it, and run it, now."""
        return self._left > 0 or not isinstance(entity, (Service, Waitable))

    def beginning_execution(self, entity: object) -> bool:
        """Nothing excludes anything: there is one thread."""
        return True

    def ending_execution(self, entity: object) -> None:
        """Nothing to release."""


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


def _main(make_node: Callable[[], Runnable], args: list[str] | None) -> int:
    """Run one node.

    Signals set a flag instead of shutting the context down, so that `close` can still publish the
    safe action (fault table, row 22).
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop.request)
    _die_with_parent(stop)
    try:
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


def _die_with_parent(stop: Stop) -> None:
    """Have the kernel send SIGTERM when the supervisor that started this process is gone."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != parent:  # it was gone before we asked
        stop.request()
