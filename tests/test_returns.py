"""GAE against numbers worked out by hand and against its definition as a mix of n-step returns."""

import numpy as np
import pytest
import torch

from kdmarl_core.teacher.returns import gae

REWARD = [[1.0], [2.0], [3.0]]
VALUE = [[0.5], [1.0], [1.5], [2.0]]


def advantages(reward, value, done, gamma, lam):
    return gae(torch.tensor(reward), torch.tensor(value), torch.tensor(done), gamma, lam)


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        # delta = 1.4, 2.35, 3.3; gamma lambda = 0.72
        ([False, False, False], [1.4 + 0.72 * (2.35 + 0.72 * 3.3), 2.35 + 0.72 * 3.3, 3.3]),
        # the end after step 1: delta_1 = 2 - 1, and nothing flows back over it
        ([False, True, False], [1.4 + 0.72 * 1.0, 1.0, 3.3]),
        # the end with the last step: the bootstrap value does not count
        ([False, False, True], [1.4 + 0.72 * (2.35 + 0.72 * 1.5), 2.35 + 0.72 * 1.5, 1.5]),
        ([True, True, True], [0.5, 1.0, 1.5]),
    ],
)
def test_hand_computed(done, expected):
    found = advantages(REWARD, VALUE, [[d] for d in done], 0.9, 0.8)
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_episode_end_cuts():
    """Negative control: without the cut, other numbers."""
    cut = advantages(REWARD, VALUE, [[False], [True], [False]], 0.9, 0.8)
    uncut = advantages(REWARD, VALUE, [[False], [False], [False]], 0.9, 0.8)
    assert cut[2] == uncut[2]
    assert (cut[:2] - uncut[:2]).abs().min() > 1.0


def test_constant_reward_is_a_geometric_series():
    steps, gamma = 50, 0.9
    ones, zeros = [[1.0]] * steps, [[0.0]] * (steps + 1)
    found = advantages(ones, zeros, [[False]] * steps, gamma, 1.0)
    assert float(found[0]) == pytest.approx((1 - gamma**steps) / (1 - gamma), rel=1e-5)


def by_definition(reward, value, done, gamma, lam):
    """(1 - lam) sum of lam^(n-1) times the n-step advantages, the last with all that remains."""
    steps = len(reward)
    out = np.zeros(steps)
    for t in range(steps):
        last = next((k for k in range(t, steps) if done[k]), steps - 1)
        for n in range(1, last - t + 2):
            n_step = sum(gamma**k * reward[t + k] for k in range(n))
            if not done[t + n - 1]:
                n_step += gamma**n * value[t + n]
            weight = lam ** (n - 1) * (1 - lam if t + n - 1 < last else 1)
            out[t] += weight * (n_step - value[t])
    return out


@pytest.mark.parametrize("gamma", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_agrees_with_the_definition(gamma, lam):
    rng = np.random.default_rng(3)
    steps, envs = 17, 5
    reward, value = rng.normal(size=(steps, envs)), rng.normal(size=(steps + 1, envs))
    done = rng.random((steps, envs)) < 0.2
    assert done.any()
    found = gae(*map(torch.from_numpy, (reward, value, done)), gamma, lam)
    for env in range(envs):
        slow = by_definition(reward[:, env], value[:, env], done[:, env], gamma, lam)
        assert found[:, env].numpy() == pytest.approx(slow, abs=1e-10)
