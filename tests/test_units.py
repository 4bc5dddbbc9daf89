"""Networks of battles: the order in which units are listed only says whom an attack hits."""

import pytest
import torch
from helpers import opinionated

from kdmarl_core.tasks import make_task
from kdmarl_core.teacher.architecture import Architecture
from kdmarl_core.teacher.teacher import Teacher
from kdmarl_core.team import load_team

SPEC = make_task("smax/5m_vs_6m").spec
UNITS = SPEC.units
FOCUS = 2  # the agent looked at


def make_battle_teacher(seed=0):
    torch.manual_seed(seed)
    return opinionated(Teacher(SPEC, Architecture("units", 32, 2)), seed)


def battle(envs=7, seed=1):
    """Made-up observations [E, N, D] and joint states [E, S]."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.rand(envs, SPEC.num_agents, SPEC.observation_size, generator=generator)
    return observation, torch.rand(envs, SPEC.state_size, generator=generator)


def logits_of(teacher, observation, state):
    legal = torch.ones(len(state), SPEC.num_agents, SPEC.num_actions, dtype=torch.bool)
    with torch.no_grad():
        return teacher.logits(observation, state, legal)


def seen_rows(observation):
    """A view of the rows of other units in observations."""
    return observation[..., : UNITS.seen * (UNITS.total - 1)].unflatten(-1, (-1, UNITS.seen))


def own_rows(state):
    """A view of the rows of units in joint states."""
    return state[..., : UNITS.own * UNITS.total].unflatten(-1, (-1, UNITS.own))


def with_enemies_in(order, observation, state):
    """The same battle with its enemies listed in another order."""
    observation, state = observation.clone(), state.clone()
    others, everyone = seen_rows(observation), own_rows(state)
    others[..., UNITS.allies - 1 :, :] = others[..., UNITS.allies - 1 :, :][..., order, :]
    everyone[..., UNITS.allies :, :] = everyone[..., UNITS.allies :, :][..., order, :]
    return observation, state


def test_enemies_in_another_order_are_attacked_in_that_order():
    teacher, (observation, state) = make_battle_teacher(), battle()
    order = [3, 5, 0, 1, 4, 2]
    before = logits_of(teacher, observation, state)
    after = logits_of(teacher, *with_enemies_in(order, observation, state))
    torch.testing.assert_close(after[..., : UNITS.moves], before[..., : UNITS.moves])
    attacks = before[..., UNITS.moves :]
    torch.testing.assert_close(after[..., UNITS.moves :], attacks[..., order])
    assert (attacks - attacks[..., :1]).abs().max() > 0.1  # they do matter


def test_other_allies_may_change_places():
    """Two allies that change places, in everybody's lists, change nothing for a third."""
    teacher, (observation, state) = make_battle_teacher(), battle()
    before = logits_of(teacher, observation, state)
    swapped, moved = observation.clone(), state.clone()
    others, everyone = seen_rows(swapped)[:, FOCUS], own_rows(moved)
    others[:, [0, 3]] = others[:, [3, 0]]  # allies 0 and 4 in the list of ally 2
    everyone[:, [0, 4]] = everyone[:, [4, 0]]
    after = logits_of(teacher, swapped, moved)
    torch.testing.assert_close(after[:, FOCUS], before[:, FOCUS])
    only_seen = logits_of(teacher, swapped, state)
    assert (only_seen[:, FOCUS] - before[:, FOCUS]).abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(teacher.value(moved), teacher.value(state))


@pytest.mark.parametrize("listed", range(UNITS.total))
def test_every_unit_matters(listed):
    """In the joint state, each one's row, and the clock behind them."""
    teacher, (observation, state) = make_battle_teacher(), battle()
    before = logits_of(teacher, observation, state)
    changed = state.clone()
    changed[:, listed * UNITS.own : (listed + 1) * UNITS.own] += 1
    moved = (logits_of(teacher, observation, changed) - before).abs().amax((0, 2)) > 1e-4
    # An agent knows of itself by its own observation.
    assert moved.tolist() == [agent != listed for agent in range(UNITS.allies)]
    with torch.no_grad():
        assert (teacher.value(changed) - teacher.value(state)).abs().max() > 1e-4
    changed = state.clone()
    changed[:, -1] += 1
    assert (logits_of(teacher, observation, changed) - before).abs().max() > 1e-4


def test_cost_by_hand():
    """Of width 32: encodings of 8, of 4 allies and 6 enemies."""
    own, seen, encoding, width = 10, 13, 8, 32
    pair = (own + seen + own) * encoding + encoding * encoding
    trunk = (own + 1 + 2 * encoding) * width + width * width + width * 5
    aim = width * encoding + 6 * (encoding + encoding)
    assert make_battle_teacher().cost().flops == 2 * (10 * pair + trunk + aim)


@pytest.mark.parametrize(
    ("task", "team"), [("mpe/simple_spread", None), ("smax/3m", "smax_3m_lh")]
)
def test_only_teachers_of_battles(task, team, refusal):
    team = team and load_team(team)
    message = refusal(Teacher, make_task(task).spec, Architecture("units", 32, 2), team)
    for named in ("network", "units", team.name if team else task, "mlp or gru"):
        assert named in message
