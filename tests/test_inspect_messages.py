"""What messages are worth, and what can be read from them."""

import json

import numpy as np
import pytest
import torch
from helpers import DISTILLATION_RECIPE, TALKING_TEAM, make_teacher, opinionated, write_yaml

from kdmarl_core.distil import run as distil_run
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.run import Work, export, write_team
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.evaluate import BundlePlayer, play
from kdmarl_core.inspect_messages import Link, Loss, probe, worths
from kdmarl_core.metrics import Interval
from kdmarl_core.schema import from_mapping
from kdmarl_core.team import load_team
from kdmarl_core.team_bundles import load_bundles

pytestmark = pytest.mark.usefixtures("simulators_made_once")


def test_inspection_tells_what_links_are_worth(tmp_path, kdmarl):
    team_file = write_yaml(tmp_path / "team.yaml", TALKING_TEAM)
    team = load_team(str(team_file))
    torch.manual_seed(0)
    recipe = from_mapping(Recipe, DISTILLATION_RECIPE, "recipe")
    work = Work(team, *make_teacher(team.task.spec), recipe, 0)
    write_team(export(work, opinionated(StudentTeam(team))), None, tmp_path / "b", overwrite=False)
    command = ["inspect", "--team", team_file, "--bundles", tmp_path / "b"]
    picture = tmp_path / "pictures" / "links.png"
    done = kdmarl(*command, "--episodes", "6", "--json", "--picture", picture)
    assert done.code == 0, done.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(done.out)
    assert len(found["links"]) == 3 * 3  # links, tamperings
    assert {entry["sender"] for entry in found["readable"]} == {"robot_0", "robot_1"}
    assert all(entry["share"] <= 1 for entry in found["readable"])
    player = BundlePlayer(load_bundles(team, tmp_path / "b"), team)
    plain = [e.team_return for e in play(team.task.make_reference(), player, 6, 0)]
    assert (found["measure"], found["score"]) == ("return", pytest.approx(np.mean(plain)))
    assert any(entry["change"]["value"] != 0 for entry in found["links"])
    # What was found is printed though the picture cannot be written.
    lost = kdmarl(*command, "--episodes", "6", "--json", "--picture", picture / "none.png")
    assert lost.code == 2
    assert str(picture) in lost.err
    assert json.loads(lost.out) == found
    other = kdmarl(*command, "--picture", tmp_path / "links.jpg")
    assert other.code == 2
    assert other.err.endswith("links.jpg is no PNG; give a name that ends in .png\n")
    silent = kdmarl("inspect", "--team", "simple_spread_lh")
    assert silent.code == 2
    assert "nobody tells anybody" in silent.err


def test_where_episodes_can_be_won_links_are_worth_wins(tmp_path, kdmarl, monkeypatch):
    """Beginners lose all of them, though they do some harm: there is no win to be lost."""
    monkeypatch.setattr(distil_run, "CHECKED_EPISODES", 6)  # as other tests' simulators
    document = {"base": "smax_3m_lh", "defaults": {"messages": {"size": 1, "to": ["robot_0"]}}}
    document["robots"] = {"robot_0": {"messages": None}}
    team_file = write_yaml(tmp_path / "team.yaml", document)
    team = load_team(str(team_file))
    recipe = from_mapping(Recipe, DISTILLATION_RECIPE, "recipe")
    work = Work(team, *make_teacher(team.task.spec), recipe, 0)
    write_team(export(work, opinionated(StudentTeam(team))), None, tmp_path / "b", overwrite=False)
    command = ["inspect", "--team", team_file, "--bundles", tmp_path / "b", "--episodes", "2"]
    found = json.loads(kdmarl(*command, "--json").out)
    assert (found["measure"], found["score"]) == ("wins", 0.0)
    assert {tuple(entry["change"].values()) for entry in found["links"]} == {(0.0, 0.0, 0.0)}
    assert "change of the wins of 0.0 %, in points, 2 episodes" in kdmarl(*command).out


def test_wins_are_told_in_points():
    change = Loss(Link("a", "b"), "cut", Interval(-0.125, -0.25, 0.0))
    assert worths([change], 0.01) == [["a", "b", "-12.50 [-25.00, +0.00]"]]


def test_a_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3)).astype(np.float32)
    noise = rng.normal(size=4000)
    y = np.stack([2 * x[:, 0] - x[:, 2] + 1, x[:, 1] + noise, noise, np.ones(4000)], 1)
    for size in (1.0, 1e-3):  # a quiet message says as much
        told = (size * x).astype(np.float32)
        share = probe(told[:2000], y[:2000], told[2000:], y[2000:])
        np.testing.assert_allclose(share[:3], [1.0, 0.5, 0.0], atol=0.05)
        assert np.isnan(share[3])
    assert probe(told[:2000] * 0, y[:2000], told[2000:] * 0, y[2000:])[0] < 0.01
