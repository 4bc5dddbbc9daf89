"""A bundle that acts: numpy and ONNX Runtime, one thread, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from kdmarl_core.bundle.manifest import MODEL, Manifest
from kdmarl_core.bundle.messages import Inbox
from kdmarl_core.bundle.onnx_check import check_model
from kdmarl_core.bundle.sha256 import sha256_hex
from kdmarl_core.bundle.signing import NO_TRUST, UNSIGNED, Trust, admit
from kdmarl_core.errors import UserError

OBSERVATION = "observation"
MESSAGES = "messages"  # of peers, as an `Inbox` gives them
LOGITS = "logits"
MESSAGE = "message"  # to others, each value between -1 and 1
STATE = "state"  # of a recurrent student, before the step
NEXT_STATE = "next_state"

# Of a process, by the model's hash: robots that fly the same bytes share what ONNX Runtime holds.
_sessions: WeakValueDictionary[str, ort.InferenceSession] = WeakValueDictionary()


class BundlePolicy:
    """One robot's decentralised actor: its own blocks in, an action index out.

    With peers it also reads their messages, and with a message head it gives one.
    """

    def __init__(
        self, manifest: Manifest, model: bytes, where: str = MODEL, vouched: str = UNSIGNED
    ) -> None:
        """Open the verified bytes of a model.

        Args:
            manifest: what they are.
            model: the bytes of an ONNX file.
            where: the file that error messages begin with.
            vouched: who vouches for them, for people.

        Raises:
            UserError: they hold what no student needs (see `check_model`), ONNX Runtime refuses
                them, or inputs and outputs are not the manifest's.
        """
        self.manifest = manifest
        self.vouched = vouched
        inputs, outputs = _interface(manifest)
        check_model(model, inputs, outputs, where)
        self._session = _open_session(model, where)
        self._feed = np.zeros((1, manifest.observation_size), np.float32)
        self._inputs = {OBSERVATION: self._feed}
        self._outputs = [name for name, _ in outputs]
        self._silence = Inbox(manifest.robot, manifest.peers).read(0)
        if manifest.peers:
            self._inputs[MESSAGES] = self._silence[None].copy()
        self.message: npt.NDArray[np.float32] | None = None  # of the newest decision, [M]
        self._ahead: dict[bytes, list[npt.NDArray[np.float32]]] = {}  # see `think_ahead`
        self.reset()
        self._try_once(where)

    def reset(self) -> None:
        """Forget the past, at the start of every episode. Feed-forward students have none."""
        self.state = np.zeros(self.manifest.student.state_size, np.float32)

    @property
    def state(self) -> npt.NDArray[np.float32]:
        """What a recurrent student remembers, [W]; empty for feed-forward ones."""
        return self._inputs[STATE][0] if STATE in self._inputs else np.zeros(0, np.float32)

    @state.setter
    def state(self, state: npt.NDArray[np.float32]) -> None:
        self._ahead.clear()
        if self.manifest.student.state_size:
            self._inputs[STATE] = state[None]

    def logits(
        self,
        observation: npt.NDArray[np.float32],
        messages: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Unnormalised log-probabilities [A] of the blocks' concatenation [D].

        A recurrent student takes one step: call it once per step of an episode. `messages` [R] is
        what an `Inbox` of its peers gives, None if nothing came. What the student tells others is
        then in `message`.
        """
        self._feed[0] = observation
        found = self._ahead.pop(self._feed.tobytes(), None)
        if self.manifest.peers:
            self._inputs[MESSAGES][0] = self._silence if messages is None else messages
        logits, *more = found or self._session.run(self._outputs, self._inputs)
        self._ahead.clear()
        if self.manifest.student.state_size:
            self._inputs[STATE] = more.pop()
        if more:
            self.message = more[0][0]
        own: npt.NDArray[np.float32] = logits[0]
        return own

    def act(
        self,
        observation: npt.NDArray[np.float32],
        action_mask: npt.NDArray[np.bool_] | None = None,
        messages: npt.NDArray[np.float32] | None = None,
    ) -> int:
        """Index of the most probable action, of the legal ones [A] if a mask is given.

        `messages` as in `logits`.

        Raises:
            FloatingPointError: the network gave NaN or infinity.
            ValueError: the mask is of another size, or no action is legal.
        """
        logits = self.logits(observation, messages)
        said = self.message is None or np.isfinite(self.message).all()
        if not (said and np.isfinite(logits).all()):
            raise FloatingPointError("the network's output is not finite")
        if action_mask is not None:
            if action_mask.shape != logits.shape or not action_mask.any():
                raise ValueError(f"{action_mask} is no mask of {len(logits)} actions")
            logits = np.where(action_mask, logits, -np.inf)
        return int(logits.argmax())

    def _try_once(self, where: str) -> None:
        """One decision on zeros: what the weights' shapes do not allow fails here."""
        expected = [(1, size) for _, size in _interface(self.manifest)[1]]
        try:
            found = [array.shape for array in self._session.run(self._outputs, self._inputs)]
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise _unusable(where, error) from None
        if found != expected:
            raise UserError(f"{where}: gives shapes {found}, not {expected}; export again")


def think_ahead(asked: Iterable[tuple[BundlePolicy, npt.NDArray[np.float32]]]) -> None:
    """Run each model once for all robots that fly it, each with its own observation.

    A policy that is then asked about that very observation has its answer ready; one that is reset
    or asked about another one thinks for itself, so that nothing depends on what is done here.
    Robots that listen to others know only when they decide what was said, and think then.
    """
    flown: dict[int, list[BundlePolicy]] = {}
    for policy, observation in asked:
        if policy.manifest.peers:
            continue
        policy._feed[0] = observation
        flown.setdefault(id(policy._session), []).append(policy)
    for policies in flown.values():
        if len(policies) > 1:
            _run_together(policies)


def _run_together(policies: list[BundlePolicy]) -> None:
    first = policies[0]
    inputs = {
        name: np.concatenate([policy._inputs[name] for policy in policies])
        for name in first._inputs
    }
    try:
        outputs = first._session.run(first._outputs, inputs)
    except Exception:  # each will meet it alone, where it is known whose it is
        return
    for row, policy in enumerate(policies):
        policy._ahead = {policy._feed.tobytes(): [output[row : row + 1] for output in outputs]}


def load_policy(folder: Path, trust: Trust = NO_TRUST, robot: str | None = None) -> BundlePolicy:
    """Read, verify and open a bundle; raises as `admit` and `BundlePolicy` do."""
    vouched = admit(folder, trust, robot)
    return BundlePolicy(vouched.manifest, vouched.model, str(folder / MODEL), vouched.state)


def _open_session(model: bytes, where: str) -> ort.InferenceSession:
    digest = sha256_hex(model)
    session = _sessions.get(digest)
    if session is None:
        session = _sessions[digest] = _new_session(model, where)
    return session


def _new_session(model: bytes, where: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    # The graph is already as small as it gets: what these would prepare costs memory only.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise _unusable(where, error) from None


def _unusable(where: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(f"{where}: not a usable ONNX model ({reason}); export again")


def _interface(manifest: Manifest) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Names and sizes of the inputs and outputs that a manifest promises."""
    inputs = [(OBSERVATION, manifest.observation_size)]
    outputs = [(LOGITS, len(manifest.actions))]
    if manifest.peers:
        inputs.append((MESSAGES, manifest.messages_size))
    if manifest.message:
        outputs.append((MESSAGE, manifest.message.size))
    if manifest.student.state_size:
        inputs.append((STATE, manifest.student.state_size))
        outputs.append((NEXT_STATE, manifest.student.state_size))
    return inputs, outputs
