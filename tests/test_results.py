"""What a flight leaves behind: one line per episode, whole or not at all."""

import math

import pytest

from kdmarl_ros.results import (
    EpisodeResult,
    append,
    check_same_models,
    check_same_run,
    read,
    summary,
)


def result(index=0, **changes):
    values = {
        "team": "simple_spread",
        "models": ("a" * 64, "b" * 64),
        "index": index,
        "seed": 7 + index,
        "team_return": -10.0 - index,
        "steps": 2,
        "outcome": "",
        "actions": ((0, 1), (2, 3)),
        "latencies_s": (0.001, 0.002, 0.003),
        "compute_s": (0.0001, 0.0002, 0.0003),
        "missed_deadlines": 1,
        "safe_actions": 0,
        "overridden_actions": 0,
        "illegal_actions": 1,
        "seconds": 0.5,
    }
    return EpisodeResult(**values | changes)


def test_round_trip(tmp_path):
    path = tmp_path / "episodes.jsonl"
    assert read(path) == []
    results = [result(i) for i in range(3)]
    for item in results:
        append(path, item)
    assert read(path) == results


def test_returns_are_kept_to_the_last_bit(tmp_path):
    append(tmp_path / "episodes.jsonl", result(team_return=-1 / 3))
    assert read(tmp_path / "episodes.jsonl")[0].team_return == -1 / 3


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_an_unfinished_line_is_left_out_and_overwritten(tmp_path, kept):
    """Killed while it wrote the second episode, a bridge starts again and plays it again."""
    path = tmp_path / "episodes.jsonl"
    append(path, result(0))
    whole = path.stat().st_size
    append(path, result(1))
    path.write_bytes(path.read_bytes()[: whole + kept if kept > 0 else kept])
    assert read(path) == [result(0)]
    append(path, result(1))
    append(path, result(2))
    assert read(path) == [result(0), result(1), result(2)]


def test_damaged_lines_are_named(tmp_path, refusal):
    path = tmp_path / "episodes.jsonl"
    append(path, result(0))
    path.write_text(path.read_text() + '{"index": 1}\n')
    message = refusal(read, path)
    assert message.startswith(f"{path}:2: ")
    path.write_text("nonsense\n")
    assert refusal(read, path).startswith(str(path))


def test_summary_by_hand():
    figures = summary([result(0), result(1, safe_actions=2, seconds=1.5)])
    assert figures == {
        "episodes": 2,
        "return": -10.5,
        "win_rate": None,
        "steps_per_second": 4 / 2.0,
        "latency_p50_ms": pytest.approx(2.0),
        "latency_p99_ms": pytest.approx(3.0),
        "compute_p50_ms": pytest.approx(0.2),
        "compute_p99_ms": pytest.approx(0.3),
        "missed_deadlines": 2,
        "safe_actions": 2,
        "overridden_actions": 0,
        "illegal_actions": 2,
    }


def test_win_rate_counts_episodes_that_have_an_outcome():
    outcomes = ["won", "lost", "won", "won"]
    assert summary([result(i, outcome=o) for i, o in enumerate(outcomes)])["win_rate"] == 0.75


def test_a_flight_in_which_nobody_answered_has_figures():
    silent = result(latencies_s=(), compute_s=(), missed_deadlines=4)
    figures = summary([silent])
    assert figures["missed_deadlines"] == 4
    assert math.isnan(figures["latency_p50_ms"])


def test_episodes_of_another_run_are_refused(tmp_path, refusal):
    path, earlier = tmp_path / "episodes.jsonl", [result(0), result(1)]
    check_same_run(path, earlier, "simple_spread", lambda index: 7 + index)
    message = refusal(check_same_run, path, earlier, "battle", lambda index: 7 + index)
    assert "team 'simple_spread', not 'battle'" in message
    message = refusal(check_same_run, path, earlier, "simple_spread", lambda index: 7)
    assert "episode 1" in message
    noisy = "lock_step, sensor_noise 0.5"
    message = refusal(check_same_run, path, earlier, "simple_spread", lambda i: 7 + i, noisy)
    assert f"was played in lock_step, not in {noisy}" in message


def test_episodes_of_other_models_are_refused(tmp_path, refusal):
    path, robots = tmp_path / "episodes.jsonl", ["robot_0", "robot_1"]
    check_same_models(path, [result(0)], robots, ["a" * 64, "b" * 64])
    message = refusal(check_same_models, path, [result(0)], robots, ["a" * 64, "c" * 64])
    assert "robot_1" in message
    assert "bbbbbbbbbbbb" in message
