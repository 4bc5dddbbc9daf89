"""The frame of a managed node: its transitions, which say why they fail, autostart, and its loop.

What is done in a transition is its subclass's. Whatever raises, in a transition or outside of one,
is said and leaves the node safe.
"""

from __future__ import annotations

import abc
import contextlib
import traceback
from collections.abc import Callable, Sequence

from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from kdmarl_core.errors import UserError
from kdmarl_ros.spin import MessagesFirst, PunctualSpinner, Stop


class AskedToEndError(UserError):
    """A transition was given up, since the node is to end: nobody waits for the reason."""


class ManagedNode(LifecycleNode, abc.ABC):
    """See the module's docstring."""

    def __init__(
        self, name: str, arguments: Sequence[str] | None, group: MessagesFirst | None
    ) -> None:
        """A node by the ROS arguments of its process, unless it is given its own.

        Args:
            name: of the node.
            arguments: ROS arguments of this node alone.
            group: of all its entities.
        """
        self._callback_group = group or MessagesFirst()  # before rclpy makes the node's services
        super().__init__(
            name,
            cli_args=None if arguments is None else list(arguments),
            use_global_arguments=arguments is None,
        )
        self._state = "unconfigured"
        self._active = False  # set by `_activate` and `_deactivate`
        self._refusal: UserError | None = None  # of a transition
        self._failure = ""  # why it is not active, since it was last configured or activated
        self._stop = Stop()  # the one that it runs with

    @property
    def default_callback_group(self) -> MessagesFirst:
        """The group of all entities, rclpy's own services among them."""
        return self._callback_group

    @abc.abstractmethod
    def start(self) -> None:
        """What is to be done before the node is first spun."""

    @abc.abstractmethod
    def _configure(self) -> None: ...

    @abc.abstractmethod
    def _activate(self) -> None: ...

    @abc.abstractmethod
    def _deactivate(self) -> None: ...

    @abc.abstractmethod
    def _cleanup(self) -> None: ...

    def run(self, stop: Stop) -> None:
        """Start, then spin until asked to stop."""
        self._stop = stop
        executor = SingleThreadedExecutor()
        executor.add_node(self)
        with contextlib.suppress(AskedToEndError):
            self.start()
        spinner = PunctualSpinner(executor)
        while not stop.requested:
            self.safely(spinner.spin_once, self._callback_group.wait_s())
            self._callback_group.callback_done()
        spinner.close()
        executor.remove_node(self)

    def autostart(self) -> None:
        """Configure and activate.

        Raises:
            UserError: that cannot be done.
        """
        succeeded = TransitionCallbackReturn.SUCCESS
        if self.trigger_configure() != succeeded or self.trigger_activate() != succeeded:
            raise self._refusal or UserError(
                f"{self.get_fully_qualified_name()}: autostart failed; the cause is logged above"
            )

    def safely(self, work: Callable[..., object], *arguments: object) -> None:
        """Do some of the node's work; what it raises is said and deactivates the node."""
        try:
            work(*arguments)
        except Exception:
            what_happened = traceback.format_exc()
            self.get_logger().error(f"unexpected:\n{what_happened}")
            if self._active:
                self._failure = what_happened.strip().splitlines()[-1]
                self.trigger_deactivate()

    def close(self) -> None:
        """Deactivate before the context goes."""
        if self._active:
            self.trigger_deactivate()

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make what the node needs to be activated."""
        return self._guarded(
            "configure", self._configure_whole, state, super().on_configure, "inactive"
        )

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to work."""
        return self._guarded("activate", self._activate, state, super().on_activate, "active")

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave all safe, then do nothing more."""
        result = self._guarded(
            "deactivate", self._deactivate, state, super().on_deactivate, "inactive"
        )
        return TransitionCallbackReturn.ERROR if self._failure else result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free what was made to be activated."""
        return self._guarded("clean up", self._cleanup, state, super().on_cleanup, "unconfigured")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave all safe."""
        return self._guarded(
            "shut down", self._deactivate, state, super().on_shutdown, "finalized"
        )

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave all safe and start over from unconfigured."""
        return self._guarded("recover", self._cleanup, state, super().on_error, "unconfigured")

    def _configure_whole(self) -> None:
        """Configure, or leave nothing of it."""
        try:
            self._configure()
        except Exception:
            self._cleanup()
            raise

    def _guarded(
        self,
        what: str,
        work: Callable[[], None],
        state: LifecycleState,
        then: Callable[[LifecycleState], TransitionCallbackReturn],
        reached: str,
    ) -> TransitionCallbackReturn:
        # rclpy swallows what a transition raises: say it here.
        try:
            work()
            result = then(state)
            if result == TransitionCallbackReturn.SUCCESS:
                self._state = reached
            return result
        except UserError as error:
            self._refusal = error
            self._failure = f"cannot {what}: {error}"
            self.get_logger().error(f"cannot {what}: {error}")
        except Exception as error:
            self._failure = f"cannot {what}: {error!r}"
            self.get_logger().error(f"cannot {what}:\n{traceback.format_exc()}")
        return TransitionCallbackReturn.FAILURE
