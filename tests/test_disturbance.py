"""Delay, noise and loss of a simulated robot, without a simulator."""

import numpy as np
import pytest

from kdmarl_ros.disturbance import Disturbance
from kdmarl_ros.simulation import SimulationSettings

SAFE = 7


def disturbance(robot=0, seed=0, **settings):
    made = Disturbance(SimulationSettings(**settings), robot, SAFE)
    made.begin(seed)
    return made


def test_without_settings_nothing_is_changed():
    quiet = disturbance()
    values = np.float32([1.0, 2.0])
    assert quiet.delayed(values) is values
    assert quiet.noisy(values, [slice(0, 2)]) is values
    assert quiet.acting(3) == 3
    assert not any(quiet.loses() for _ in range(100))


def test_sensors_show_what_was_a_few_steps_ago():
    slow = disturbance(sensor_delay_steps=2)
    assert [slow.delayed(step) for step in range(5)] == [0, 0, 0, 1, 2]
    slow.begin(1)
    assert slow.delayed(9) == 9  # nothing of the last episode is left


def test_actions_take_effect_later():
    slow = disturbance(action_delay_steps=2)
    assert [slow.acting(action) for action in (1, 2, 3, 4)] == [SAFE, SAFE, 1, 2]
    slow.begin(1)
    assert slow.acting(5) == SAFE


def test_noise_has_its_size_and_leaves_zeros_and_other_parts():
    noisy = disturbance(sensor_noise=0.5)
    values = np.ones(30_000, np.float32)
    values[:10_000] = 0.0
    found = noisy.noisy(values, [slice(0, 10_000), slice(10_000, 20_000)])
    assert np.array_equal(found[:10_000], values[:10_000])
    assert np.array_equal(found[20_000:], values[20_000:])
    added = found[10_000:20_000] - 1.0
    assert added.mean() == pytest.approx(0.0, abs=0.02)
    assert added.std() == pytest.approx(0.5, rel=0.03)
    assert values[15_000] == 1.0  # the simulator's own are left alone


def test_messages_get_lost_at_their_share():
    lossy = disturbance(sensor_loss=0.2)
    assert np.mean([lossy.loses() for _ in range(10_000)]) == pytest.approx(0.2, abs=0.02)


def test_seeds_and_robots_decide_what_is_disturbed():
    def draw(**which):
        return disturbance(sensor_noise=1.0, **which).noisy(np.ones(4, np.float32), [slice(0, 4)])

    assert np.array_equal(draw(), draw())
    assert not np.array_equal(draw(), draw(seed=1))
    assert not np.array_equal(draw(), draw(robot=1))
