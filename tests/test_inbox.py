"""How messages travel, and what a receiver holds of them."""

import numpy as np
import pytest

from kdmarl_core.bundle import FORMATS, Disturbance, Inbox, PeerEntry, encode
from kdmarl_core.bundle.messages import decode, is_lost

# How values travel


@pytest.mark.parametrize(
    ("form", "values", "data", "back"),
    [
        ("int8", [0.0, 1.0, -1.0, 0.5], [0, 127, 129, 64], [0, 1, -1, 64 / 127]),
        ("int4", [1.0, -1.0, 0.4], [0x97, 0x03], [1, -1, 3 / 7]),  # 7, -7, 2.8
        ("float32", [0.25], [0, 0, 128, 62], [0.25]),
        ("int8", [3.0, -3.0], [127, 129], [1, -1]),  # bounded in any case
    ],
)
def test_values_travel_as_worked_out_by_hand(form, values, data, back):
    sent = encode(np.array(values, np.float32), form)
    assert list(sent) == data
    found, reason = decode(sent, len(values), form)
    assert reason is None
    np.testing.assert_allclose(found, back, rtol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_what_was_decoded_is_encoded_alike(form, size):
    values = np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)
    data = encode(values, form)
    assert len(data) == -(-size * FORMATS[form].bits // 8)
    found, _ = decode(data, size, form)
    assert encode(found, form) == data
    levels = FORMATS[form].levels or 1e7
    assert np.abs(found - values).max() <= 0.5 / levels + 1e-7


@pytest.mark.parametrize(
    ("form", "size", "data", "reason"),
    [
        ("int8", 2, b"\0", "wrong_size"),
        ("int8", 2, b"\0" * 3, "wrong_size"),
        ("int8", 1, b"\x80", "out_of_range"),  # -128
        ("int4", 2, b"\x08", "out_of_range"),  # -8
        ("int4", 1, b"\x10", "wrong_size"),  # a second value
        ("float32", 1, np.float32(1.5).tobytes(), "out_of_range"),
        ("float32", 1, np.float32("nan").tobytes(), "non_finite"),
        ("float32", 1, b"\0" * 5, "wrong_size"),
    ],
)
def test_what_cannot_be_used_is_named(form, size, data, reason):
    assert decode(data, size, form)[1] == reason


# What a receiver holds


def told(value, form="int8"):
    return encode(np.array([value], np.float32), form)


@pytest.fixture
def inbox():
    """Of a robot with one peer whose single value can be read 2 steps late, and is held to 3."""

    def make(**disturbance):
        box = Inbox("b", [PeerEntry("a", 1, "int8", 2, 3)], Disturbance(**disturbance))
        box.begin(5)
        return box

    return make


def test_delay_hold_and_age(inbox):
    box = inbox()
    read = []
    for step in range(9):
        read.append(tuple(box.read(step)))
        if step in (0, 1, 3):
            assert box.put(0, 5, step, told(1 / 127 * (step + 1)), now=step) is None
    values, ages = np.array(read).T
    np.testing.assert_allclose(values * 127, [0, 0, 1, 2, 2, 4, 4, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(ages * 4, [4, 4, 2, 2, 3, 2, 3, 4, 4])


def test_messages_may_come_in_any_order_and_from_the_future(inbox):
    box = inbox()
    for step in (4, 2, 3):
        assert box.put(0, 5, step, told(step / 127), now=4) is None
    assert [round(float(box.read(step)[0] * 127)) for step in (4, 5, 6)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("episode", "step", "data", "bits", "reason"),
    [
        (7, 10, told(0.0), 0, "other_episode"),
        (6, 10, told(0.0), 0, "ahead"),  # of what is waited for at the next one's beginning
        (5, 2, told(0.0), 0, "old"),
        (5, 18, told(0.0), 0, "ahead"),
        (5, 10, told(0.0), 4, "wrong_format"),
        (5, 10, told(0.0) * 2, 8, "wrong_size"),
        (5, 10, b"\x80", 8, "out_of_range"),
    ],
)
def test_what_is_dropped_says_why(inbox, episode, step, data, bits, reason):
    box = inbox()
    assert box.put(0, episode, step, data, 10, bits) == reason
    assert box.read(12)[1] == 1.0  # nothing is held


def test_an_episode_begins_with_nothing(inbox):
    box = inbox()
    box.put(0, 5, 0, told(1.0), now=0)
    assert box.read(2)[0] == 1.0
    box.begin(6)
    assert tuple(box.read(2)) == (0.0, 1.0)
    # The last message of the episode before comes too late by right; others should not come.
    assert box.put(0, 5, 24, told(1.0), now=0) == ""
    assert box.put(0, 4, 24, told(1.0), now=0) == "other_episode"
    assert tuple(box.read(2)) == (0.0, 1.0)


def test_a_peer_may_be_in_the_next_episode_already(inbox):
    """In real time nobody waits: what it says there is heard once the receiver is there, too."""
    box = inbox()
    assert box.put(0, 6, 0, told(1.0), now=24) is None
    assert tuple(box.read(26)) == (0.0, 1.0)
    box.begin(6)
    assert [tuple(box.read(step)) for step in (1, 2)] == [(0.0, 1.0), (1.0, 0.5)]


@pytest.mark.parametrize("begun", [[5], [7], [0], [5, 6], [6, 6]])
def test_what_was_early_is_heard_in_the_next_episode_only(inbox, begun):
    box = inbox()
    assert box.put(0, 6, 0, told(1.0), now=24) is None
    for episode in begun:
        box.begin(episode)
    assert tuple(box.read(2)) == (0.0, 1.0)


def test_an_episode_that_is_played_once_more_begins_with_nothing(inbox):
    """A simulator that was killed plays the same number again; what waited is of the last time."""
    box = inbox()
    box.begin(5)
    assert box.put(0, 5, 3, told(1.0), now=0) == "old"
    assert [tuple(box.read(step)) for step in (3, 5, 6)] == [(0.0, 1.0)] * 3
    assert box.put(0, 5, 3, told(0.5), now=3) is None
    assert box.read(5)[0] == pytest.approx(0.5, abs=0.01)


def test_loss_and_another_delay(inbox):
    deaf, slow, some = inbox(loss=1.0), inbox(delay_steps=3), inbox(loss=0.3)
    # What is lost has not come, but for no fault.
    assert [box.put(0, 5, 0, told(1.0), now=0) for box in (deaf, slow)] == ["", None]
    assert [deaf.read(step)[0] for step in (2, 3)] == [0, 0]
    assert [slow.read(step)[0] for step in (2, 3)] == [0, 1]
    draws = [is_lost(0.3, episode, step, "a", "b") for episode in range(80) for step in range(25)]
    assert 0.27 < np.mean(draws) < 0.33
    for step in range(10):
        some.put(0, 5, step, told(step / 127), now=step)
        arrived = [s for s in range(step - 1) if not is_lost(0.3, 5, s, "a", "b")]
        expected = max((s for s in arrived if step - s <= 3), default=0)
        assert round(float(some.read(step)[0] * 127)) == expected
    assert not is_lost(0.0, 0, 0, "a", "b")
