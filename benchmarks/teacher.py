"""Our MAPPO against JaxMARL's own, one after the other on the same cores.

    pip install distrax
    git clone https://github.com/FLAIROx/JaxMARL
    python benchmarks/teacher.py --jaxmarl-source JaxMARL

JaxMARL's trainers are not part of its wheel: name a checkout of the version that is installed. Of
what they import, only distrax is needed here; hydra, omegaconf and wandb serve the script's main
program and its logging, and are replaced. Its module, its `make_train` and the values of its own
configuration are used as they are, ours through the library with the shipped recipe, except:

- episodes have 25 steps on both sides (JaxMARL's default gives 26);
- both learning rates are annealed over what fits into `--budget` seconds;
- beside JaxMARL's shipped shape of a rollout (environments x steps) others are tried
  (`--shapes`), so that it is also seen at its fastest.

Every run has a process of its own and the same `--cores`. First come short runs, alternating, for
environment steps per second, then a training of `--budget` seconds each of ours, of JaxMARL as
shipped and of its fastest shape. Compiling and the rest of the start are measured by themselves
and count in neither. Returns are means over agents of the sum of an episode's rewards (JaxMARL's
log multiplies them by the number of agents: divided again here). Those against wall-clock are of
the actions sampled in training; the final ones are of greedy play by one function, in `mpe2`, on
the same seeded episodes for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from kdmarl_core.cli.common import add_json, add_seed, positive, print_json, print_table, run
from kdmarl_core.errors import UserError

if TYPE_CHECKING:
    from kdmarl_core.tasks import View

TASK = "mpe/simple_spread"
OURS = "kdmarl"
SCRIPT = Path("baselines/MAPPO/mappo_rnn_mpe.py")
CONFIG = Path("baselines/MAPPO/config/mappo_homogenous_rnn_mpe.yaml")
MARKS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the budget: columns of the table of returns
WINDOW = 0.05  # of the budget: returns are means over so much of it before each mark
ENDLESS = 10**9  # environment steps, for runs that are stopped by the clock


@dataclass(frozen=True)
class Job:
    """One run: the shape of JaxMARL's rollouts, or none for ours, and when it ends."""

    shape: tuple[int, int] | None  # environments, steps
    source: Path
    seed: int
    cores: int
    seconds: float | None = None  # stop after so much training, or
    env_steps: int = ENDLESS  # train so far and evaluate
    episodes: int = 0  # of the evaluation

    @property
    def name(self) -> str:
        """Name in the tables."""
        return OURS if self.shape is None else f"JaxMARL {self.shape[0]} x {self.shape[1]}"


@dataclass
class Run:
    """What a run measured; updates are stamped when they are done."""

    name: str
    begun: float
    stamps: list[float] = field(default_factory=list)
    env_steps: list[int] = field(default_factory=list)  # up to each stamp
    returns: list[float] = field(default_factory=list)  # of each rollout
    processor: list[float] = field(default_factory=list)  # seconds of all threads
    greedy: list[float] = field(default_factory=list)  # episodes of the trained team

    def add(self, env_steps: int, episode_return: float) -> None:
        """One more update is done."""
        self.stamps.append(time.monotonic())
        self.processor.append(time.process_time())
        self.env_steps.append(env_steps)
        self.returns.append(episode_return)

    @property
    def rate(self) -> float:
        """Environment steps per second, from the end of the first update on."""
        return (self.env_steps[-1] - self.env_steps[0]) / (self.stamps[-1] - self.stamps[0])

    @property
    def cores_busy(self) -> float:
        """Processor time by wall-clock: well below the cores given when others took them."""
        return (self.processor[-1] - self.processor[0]) / (self.stamps[-1] - self.stamps[0])

    @property
    def start_up(self) -> float:
        """Seconds before training: the first update's end less what an update takes."""
        first = self.env_steps[0] / self.rate
        return self.stamps[0] - first - self.begun

    @property
    def clock(self) -> np.ndarray:
        """Seconds of training at each stamp, without the start."""
        return np.array(self.stamps) - self.begun - self.start_up

    def return_at(self, seconds: float, window: float) -> float:
        """Mean return of the rollouts in the `window` seconds before."""
        seconds = min(seconds, self.clock[-1])
        chosen = (self.clock > seconds - window) & (self.clock <= seconds)
        return float(np.mean(np.array(self.returns)[chosen])) if chosen.any() else float("nan")


class _TimeUpError(Exception):
    """Ends a run that is stopped by the clock."""


def _stop_when_due(record: Run, seconds: float | None) -> None:
    if seconds is not None and record.stamps[-1] - record.stamps[0] > seconds:
        raise _TimeUpError


def perform(job: Job) -> Run:
    """Carry out a run, in the process that calls."""
    record = Run(job.name, time.monotonic())
    if job.shape is None:
        _run_ours(job, record)
    else:
        _run_jaxmarl(job, record)
    return record


# --- Ours ----------------------------------------------------------------------------------------


def _run_ours(job: Job, record: Run) -> None:
    from kdmarl_core.process import prepare_training
    from kdmarl_core.tasks import make_task
    from kdmarl_core.teacher.player import TeacherPlayer
    from kdmarl_core.teacher.train import train

    prepare_training(job.cores)
    task, recipe = make_task(TASK), dataclasses.replace(_recipe(), env_steps=job.env_steps)

    def report(iteration: int, figures: dict[str, float]) -> None:
        record.add(iteration * recipe.steps_per_iteration, figures["return"])
        _stop_when_due(record, job.seconds)

    with tempfile.TemporaryDirectory() as folder:
        try:
            teacher, _ = train(task, recipe, job.seed, Path(folder), resume=False, report=report)
        except _TimeUpError:
            return
    record.greedy = _evaluate(TeacherPlayer(teacher, task.spec), job)


def _recipe() -> Any:
    from kdmarl_core.files import share_folder
    from kdmarl_core.schema import from_mapping, read_yaml
    from kdmarl_core.teacher.mappo import Recipe

    path = share_folder() / "config" / "training" / f"{TASK.replace('/', '_')}.yaml"
    return from_mapping(Recipe, read_yaml(path), str(path))


def _evaluate(player: Any, job: Job) -> list[float]:
    from kdmarl_core.evaluate import play
    from kdmarl_core.tasks import make_task

    env = make_task(TASK).make_reference()
    return [episode.team_return for episode in play(env, player, job.episodes, job.seed)]


def _play_randomly(job: Job) -> list[float]:
    from kdmarl_core.evaluate import RandomPlayer

    return _evaluate(RandomPlayer(), job)


# --- JaxMARL -------------------------------------------------------------------------------------


def _run_jaxmarl(job: Job, record: Run) -> None:
    import jax

    def log(figures: dict[str, Any]) -> None:
        # The log counts updates from 0 and multiplies returns by the number of agents.
        done = int(figures["env_step"]) + config["NUM_ENVS"] * config["NUM_STEPS"]
        agents = config["NUM_ACTORS"] // config["NUM_ENVS"]
        record.add(done, float(figures["returns"]) / agents)
        _stop_when_due(record, job.seconds)

    if job.seconds is not None:
        logging.disable()  # JAX would report the exception that ends the run
    trainer = _load_script(job.source, log)
    config = _config(job)
    key = jax.random.PRNGKey(job.seed)
    compiled = jax.jit(trainer.make_train(config)).lower(key).compile()
    try:
        result = jax.block_until_ready(compiled(key))  # type: ignore[no-untyped-call]
    except jax.errors.JaxRuntimeError as error:
        if _TimeUpError.__name__ not in str(error):
            raise
        return
    (train_states, *_), _ = result["runner_state"]
    record.greedy = _evaluate(_JaxmarlPlayer(trainer, config, train_states[0].params), job)


def _load_script(source: Path, log: Callable[[dict[str, Any]], None]) -> ModuleType:
    """JaxMARL's script as a module; what it logs goes to `log`."""
    _replace("wandb", log=log)
    _replace("hydra", main=lambda **_: lambda function: function)
    _replace("omegaconf", OmegaConf=None)
    spec = importlib.util.spec_from_file_location("jaxmarl_mappo", source / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def _config(job: Job) -> dict[str, Any]:
    """The shipped values with our length of episodes, and the job's shape and length."""
    assert job.shape is not None
    num_envs, num_steps = job.shape
    return _shipped_config(job.source) | {
        "ENV_KWARGS": {"max_steps": 24},  # compared before it is counted: 25 steps
        "NUM_ENVS": num_envs,
        "NUM_STEPS": num_steps,
        "TOTAL_TIMESTEPS": job.env_steps,
    }


def _shipped_config(source: Path) -> dict[str, Any]:
    from kdmarl_core.schema import read_yaml

    return {key: _number(value) for key, value in read_yaml(source / CONFIG).items()}


def _number(value: Any) -> Any:
    """`2e-3`, which PyYAML takes for a text and hydra for a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class _JaxmarlPlayer:
    """A team trained by JaxMARL, playing its most probable actions in our evaluation."""

    def __init__(self, trainer: ModuleType, config: dict[str, Any], parameters: Any) -> None:
        import jax

        actor = trainer.ActorRNN(5, config=config)
        shape = (config["NUM_ACTORS"] // config["NUM_ENVS"], config["GRU_HIDDEN_DIM"])
        self._rest = trainer.ScannedRNN.initialize_carry(*shape)
        self._state = self._rest

        @jax.jit
        def act(state: Any, observation: Any, done: Any) -> tuple[Any, Any]:
            state, policy = actor.apply(parameters, state, (observation[None], done[None]))
            return state, policy.mode()[0]

        self._act = act

    def reset(self, seed: int) -> None:
        """Forget the past."""
        self._state = self._rest

    def act(self, view: View) -> list[int]:
        """Greedy actions."""
        going_on = np.zeros(len(view.observations), bool)
        self._state, chosen = self._act(self._state, np.stack(view.observations), going_on)
        actions: list[int] = np.asarray(chosen).tolist()
        return actions


# --- The comparison ------------------------------------------------------------------------------


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jaxmarl-source", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        "--shapes",
        metavar="ENVSxSTEPS",
        nargs="*",
        type=_shape,
        default=[(64, 128), (256, 25)],
        help="of JaxMARL's rollouts, besides the shipped one (default 64x128 256x25)",
    )
    parser.add_argument("--repeats", type=positive, default=2, help="short runs (default 2)")
    parser.add_argument("--short", type=float, default=15, help="seconds of each (default 15)")
    parser.add_argument("--budget", type=float, default=150, help="training (default 150 s)")
    parser.add_argument("--episodes", type=positive, default=500, help="to evaluate (500)")
    parser.add_argument("--cores", type=positive, default=2, help="for either (default 2)")
    add_seed(parser)
    add_json(parser)
    return run(compare, parser.parse_args())


def _shape(text: str) -> tuple[int, int]:
    num_envs, num_steps = map(int, text.split("x"))
    return num_envs, num_steps


def compare(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    _check(arguments.jaxmarl_source)
    _limit_cores(arguments.cores)
    shipped = _shipped_shape(arguments.jaxmarl_source)
    shapes = [None, *dict.fromkeys([shipped, *arguments.shapes])]
    first = Job(None, arguments.jaxmarl_source, arguments.seed, arguments.cores)
    jobs = [dataclasses.replace(first, shape=shape) for shape in shapes]
    short = _measure_rates(jobs, arguments)
    rates = {job.name: _mean_rate(short, job.name) for job in jobs}
    ours, default, *_ = jobs
    fastest = max(jobs[1:], key=lambda job: rates[job.name])
    chosen = list(dict.fromkeys([ours, default, fastest]))
    trained = [_train(job, rates[job.name], arguments) for job in chosen]
    random = _in_own_process(
        _play_randomly, dataclasses.replace(first, episodes=arguments.episodes)
    )
    if arguments.json:
        print_json(_figures(short, trained, random))
    else:
        _print(short, trained, random, arguments)


def _check(source: Path) -> None:
    if not (source / SCRIPT).is_file():
        raise UserError(f"--jaxmarl-source: no {SCRIPT} in {source}; give a checkout of JaxMARL")
    if importlib.util.find_spec("distrax") is None:
        raise UserError("JaxMARL's trainer needs distrax; pip install distrax")


def _limit_cores(cores: int) -> None:
    """Both libraries size their thread pools by the cores that the process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < cores:
        raise UserError(f"--cores: only {len(allowed)} here; give at most so many")
    os.sched_setaffinity(0, allowed[:cores])
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["JAX_PLATFORMS"] = "cpu"


def _shipped_shape(source: Path) -> tuple[int, int]:
    config = _shipped_config(source)
    return config["NUM_ENVS"], config["NUM_STEPS"]


def _measure_rates(jobs: Sequence[Job], arguments: argparse.Namespace) -> list[Run]:
    timed = [dataclasses.replace(job, seconds=arguments.short) for job in jobs]
    runs = []
    for repeat in range(arguments.repeats):
        for job in timed:
            _say(f"{job.name}: {arguments.short:.0f} s, {repeat + 1} of {arguments.repeats}")
            runs.append(_in_own_process(perform, job))
    return runs


def _mean_rate(runs: Sequence[Run], name: str) -> float:
    return float(np.mean([measured.rate for measured in runs if measured.name == name]))


def _train(job: Job, rate: float, arguments: argparse.Namespace) -> Run:
    env_steps = int(rate * arguments.budget)
    _say(f"{job.name}: {env_steps:,} environment steps, about {arguments.budget:.0f} s")
    longer = dataclasses.replace(job, env_steps=env_steps, episodes=arguments.episodes)
    trained: Run = _in_own_process(perform, longer)
    return trained


def _in_own_process(function: Callable[[Job], Any], job: Job) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_leave_stdout_alone) as pool:
        return pool.submit(function, job).result()


def _leave_stdout_alone() -> None:
    """What the libraries print goes to standard error: standard output is for the figures."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- Figures -------------------------------------------------------------------------------------


def _standard_error(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _figures(
    short: Sequence[Run], trained: Sequence[Run], random: Sequence[float]
) -> dict[str, Any]:
    return {
        "machine": _machine(),
        "random_return": float(np.mean(random)),
        "short": [
            {
                "name": measured.name,
                "env_steps_per_second": measured.rate,
                "start_up_seconds": measured.start_up,
                "cores_busy": measured.cores_busy,
            }
            for measured in short
        ],
        "trained": [
            {
                "name": measured.name,
                "env_steps": measured.env_steps[-1],
                "env_steps_per_second": measured.rate,
                "start_up_seconds": measured.start_up,
                "cores_busy": measured.cores_busy,
                "training_seconds": float(measured.clock[-1]),
                "greedy_return": float(np.mean(measured.greedy)),
                "standard_error": _standard_error(measured.greedy),
                "seconds": [round(float(second), 2) for second in measured.clock],
                "sampled_return": measured.returns,
            }
            for measured in trained
        ],
    }


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "jax", "jaxmarl"))
    return f"{cores} cores of {_processor()}, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _print(
    short: Sequence[Run],
    trained: Sequence[Run],
    random: Sequence[float],
    arguments: argparse.Namespace,
) -> None:
    print(f"{TASK}: MAPPO, {_machine()}\n")
    _print_rates(short)
    _print_returns(trained, arguments.budget)
    _print_final(trained, random)
    for other in trained[1:]:
        _print_ratio(trained[0], other, short, arguments.budget)


def _print_rates(short: Sequence[Run]) -> None:
    rows = []
    for name in dict.fromkeys(measured.name for measured in short):
        runs = [measured for measured in short if measured.name == name]
        rows.append(
            (
                name,
                " ".join(f"{measured.rate:,.0f}" for measured in runs),
                f"{_mean_rate(runs, name):,.0f}",
                " ".join(f"{measured.start_up:.1f}" for measured in runs),
                " ".join(f"{measured.cores_busy:.2f}" for measured in runs),
            )
        )
    header = ("", "env steps/s", "mean", "start in s", "cores busy")
    print_table("Short runs; imports and compiling are in the start only", header, rows)


def _print_returns(trained: Sequence[Run], budget: float) -> None:
    marks = [mark * budget for mark in MARKS]
    rows = [
        (run_.name, *(f"{run_.return_at(mark, WINDOW * budget):.1f}" for mark in marks))
        for run_ in trained
    ]
    header = ("seconds of training", *(f"{mark:g}" for mark in marks))
    print_table("Return per episode and agent of the actions sampled in training", header, rows)


def _print_final(trained: Sequence[Run], random: Sequence[float]) -> None:
    rows = [
        (
            run_.name,
            f"{run_.env_steps[-1]:,}",
            f"{run_.clock[-1]:.0f}",
            f"{run_.start_up:.1f}",
            f"{run_.rate:,.0f}",
            f"{run_.cores_busy:.2f}",
            f"{np.mean(run_.greedy):.2f} ({_standard_error(run_.greedy):.2f})",
        )
        for run_ in trained
    ]
    rows.append(("random", *"-----", f"{np.mean(random):.2f}"))
    header = ("", "env steps", "seconds", "start", "steps/s", "cores", "greedy")
    title = f"After training: mean of {len(random)} greedy episodes in mpe2 (standard error)"
    print_table(title, header, rows)


def _print_ratio(ours: Run, other: Run, short: Sequence[Run], budget: float) -> None:
    short_ratio = _mean_rate(short, OURS) / _mean_rate(short, other.name)
    gain = np.subtract(ours.greedy, other.greedy)
    ratio = np.mean(ours.greedy) / np.mean(other.greedy)
    print(
        f"{OURS} to {other.name}: {short_ratio:.1f} times the env steps/s in short runs, "
        f"{ours.rate / other.rate:.1f} in training; final greedy return "
        f"{np.mean(gain):+.2f} +- {_standard_error(gain):.2f} better (ratio {ratio:.2f})"
    )
    window = WINDOW * budget
    level = other.return_at(budget, window)
    reached = (
        second
        for second in ours.clock
        if second > window and ours.return_at(second, window) > level
    )
    found = next(reached, None)
    when = "not reached" if found is None else f"passed after {found:.0f} s"
    print(f"  its last sampled return of {level:.1f} was {when} by {OURS}")


if __name__ == "__main__":
    sys.exit(main())
