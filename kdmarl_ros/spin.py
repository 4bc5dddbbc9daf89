"""The frame of every node's main(): init, run, a clean end, one line for the user's mistakes."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Protocol, TypeVar

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from kdmarl_core.errors import UserError

EXIT_USER_ERROR = 2

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


class Runnable(Protocol):
    """What `main` needs of a node."""

    def run(self, stop: Stop) -> None:
        """Work until `stop.requested`."""

    def close(self) -> None:
        """Leave the robot safe; the context is still alive."""


N = TypeVar("N", bound=Node)


def main(make_node: Callable[[], N], args: list[str] | None = None) -> int:
    """Run one node to its end; returns the exit code.

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
            node.run(stop)  # type: ignore[attr-defined]
        finally:
            node.close()  # type: ignore[attr-defined]
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
