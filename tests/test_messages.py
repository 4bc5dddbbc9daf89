"""Messages between robots: who tells whom, how it is learned, bundles that belong together."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import (
    DISTILLATION_RECIPE,
    OFF,
    TALKING_TEAM,
    changed,
    make_learner,
    make_teacher,
    opinionated,
    unrolled_plainly,
)

from kdmarl_core.bundle import BundlePolicy, Disturbance, Inbox, PeerEntry, encode
from kdmarl_core.distil import student as distil_student
from kdmarl_core.distil.coordination import CoordinationHeads
from kdmarl_core.distil.losses import Weights
from kdmarl_core.distil.messages import (
    Post,
    Wiring,
    draw_delivery,
    joined,
)
from kdmarl_core.distil.on_policy import MESSAGE_STEPS, StudentsActing, refuse_short_parts
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.run import Work, distil, export, measure, write_team
from kdmarl_core.distil.samples import Batch, Labels, label
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.evaluate import BundlePlayer, play
from kdmarl_core.schema import from_mapping, with_changes
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.team_bundles import load_bundles

pytestmark = pytest.mark.usefixtures("simulators_made_once")

LIMITED = {
    "base": "simple_spread_lh",
    "defaults": {
        "student": {"network": "mlp", "width": 8},
        "messages": {"size": 3, "to": "all", "hold_steps": 3},
    },
}
NETWORKS = ["mlp", "gru"]


# Team files


def test_who_hears_whom(load):
    team = load(TALKING_TEAM)
    first, second, third = team.robots
    assert first.messages.to == ("robot_1", "robot_2")
    assert first.peers == ()
    assert second.peers == (PeerEntry("robot_0", 3, "int4", 1, 4),)
    assert third.messages is None
    assert third.peers == (*second.peers, PeerEntry("robot_1", 2, "float32", 2, 10))
    everyone = load(LIMITED)
    assert [len(robot.peers) for robot in everyone.robots] == [2, 2, 2]


def test_silence_leaves_no_trace(load):
    """Of a team's record: keys of results do not change."""
    silent = load({"base": "simple_spread_lh"})
    assert "messages" not in json.dumps(silent.record())
    spoken = load({"base": "simple_spread_lh", "defaults": {"messages": {"size": 0, "to": []}}})
    assert spoken.record() == silent.record()
    assert "training" in load(LIMITED).record()["robots"]["robot_1"]["messages"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"to": ["robot_1"]}, ["robot_1: messages: to", "'robot_1'", "itself"]),
        ({"to": ["robot_9"]}, ["robot_1: messages: to", "robot_9", "robot_0"]),
        ({"to": ["robot_0", "robot_0"]}, ["messages: to", "once"]),
        ({"size": 0, "to": "all"}, ["size: 0", "all", "at least 1"]),
        ({"size": 0, "to": ["robot_0"]}, ["size: 0", "robot_0"]),
        ({"size": 4, "to": []}, ["size: 4", "none", "name some"]),
        ({"size": -1}, ["size: -1"]),
        ({"format": "int9"}, ["format", "int9", "int8"]),
        ({"delay_steps": 0}, ["delay_steps: 0", "at least 1"]),
        ({"hold_steps": 1, "delay_steps": 2}, ["hold_steps: 1", "delay of 2"]),
        ({"training": {"loss": [0.5, 0.1]}}, ["training: loss", "0.5"]),
        ({"training": {"loss": [0.0, 2.0]}}, ["training: loss", "2.0"]),
        ({"training": {"delay_steps": [0, 1]}}, ["training: delay_steps", "[0, 1]"]),
        ({"training": {"delay_steps": [1, 99]}}, ["hold_steps: 3", "99"]),
        ({"training": {"formats": ["int3"]}}, ["training: formats", "int3"]),
        ({"sise": 4}, ["sise", "size"]),
        ({"size": 1_000_000}, ["robot_1: messages: size: 1000000 is above 1024"]),
        ({"hold_steps": 10**19}, ["messages: hold_steps", "is above 1000000"]),
        (
            {"delay_steps": 25, "hold_steps": 40},
            ["robot_1: messages: delay_steps: 25", "25 steps"],
        ),
        (
            {"delay_steps": 3, "training": {"delay_steps": [1, 2]}},
            ["robot_1: messages: delay_steps: 3", "1 to 2", "training.delay_steps"],
        ),
        (
            {"format": "int4", "training": {"formats": ["float32"]}},
            ["robot_1: messages: format: int4", "training.formats", "float32"],
        ),
        (
            {"training": {"delay_steps": [1, 30]}, "hold_steps": 40},
            ["delay_steps: 30 is not below the 25 steps of an episode"],
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(load, refusal, change, words):
    document = changed(LIMITED, "robots", {"robot_1": {"messages": change}})
    message = refusal(load, document)
    for word in words:
        assert word in message


def test_a_delay_that_no_rollout_can_train_is_to_be_lowered(refusal):
    """Longer rollouts would not help: gradients follow messages through so many steps at most."""
    refuse_short_parts(2 * MESSAGE_STEPS, MESSAGE_STEPS - 1)
    message = refusal(refuse_short_parts, 4 * MESSAGE_STEPS, MESSAGE_STEPS)
    assert f"arrives {MESSAGE_STEPS} steps late; lower delay_steps" in message
    assert "rollout_steps" not in message


# Delivery in training: the same as an inbox, in batches


def delivered(team, begins, seed=0):
    wiring = Wiring(team)
    return wiring, draw_delivery(wiring, begins, torch.Generator().manual_seed(seed))


def some_begins(steps=17, episodes=5, seed=0):
    begins = torch.rand(steps, episodes, generator=torch.Generator().manual_seed(seed)) < 0.12
    begins[0] = True
    return begins


def test_batches_receive_what_an_inbox_receives(load):
    """Followed message by message, with the loss, delay and format that were drawn."""
    team, begins = load(TALKING_TEAM), some_begins()
    wiring, delivery = delivered(team, begins)
    steps, episodes = begins.shape
    torch.manual_seed(0)
    students = opinionated(StudentTeam(team))
    with torch.no_grad():
        output = run(students, *sequences(students, begins), begins, delivery)
    assert output.message.std() > 0.2  # or rounding shows nothing
    formats = {7.0: "int4", 127.0: "int8", 2.0**22: "float32"}
    for receiver, robot in enumerate(team.robots):
        read = wiring.read_by(receiver, output.held, delivery)
        own = [number for number, link in enumerate(wiring.links) if link[1] == receiver]
        for episode in range(episodes):
            boxes = None
            for t in range(steps):
                if begins[t, episode]:
                    began = t
                    # One inbox per peer, since each has its own delay.
                    boxes = [
                        Inbox(
                            robot.name,
                            [peer],
                            Disturbance(0.0, int(delivery.delay[t, link, episode])),
                        )
                        for peer, link in zip(robot.peers, own, strict=True)
                    ]
                    for box in boxes:
                        box.begin(0)
                found = [box.read(t - began).copy() for box in boxes]
                expected = np.concatenate([np.zeros(0, np.float32), *found])
                np.testing.assert_allclose(read[t, episode], expected, atol=2e-7)
                for box, link in zip(boxes, own, strict=True):
                    delay = int(delivery.delay[t, link, episode])
                    arrives = t + delay < steps and delivery.arrives[t + delay, link, episode]
                    begun_anew = begins[t + 1 : t + delay + 1, episode].any()
                    if arrives and not begun_anew:
                        peer, sender = box.peers[0], wiring.links[link][0]
                        values = output.message[t, episode, sender, : peer.size].numpy()
                        form = formats[float(delivery.levels[t, sender, episode])]
                        box.peers = (dataclasses.replace(peer, format=form, delay_steps=1),)
                        box.put(0, 0, t - began, encode(values, form), t - began)


def test_what_is_drawn_lies_in_the_team_files_ranges(load):
    team = load(TALKING_TEAM)
    begins = torch.zeros(40, 400, dtype=torch.bool)
    begins[0] = True
    wiring, delivery = delivered(team, begins)
    first = [number for number, (sender, _) in enumerate(wiring.links) if sender == 0]
    second = [number for number, (sender, _) in enumerate(wiring.links) if sender == 1]
    assert set(delivery.delay[:, first].unique().tolist()) == {1, 2, 3}
    assert set(delivery.delay[:, second].unique().tolist()) == {2}
    assert set(delivery.levels[:, 0].unique().tolist()) == {7.0, 127.0}
    assert delivery.levels[:, 1].unique().tolist() == [2.0**22]
    shares = 1 - delivery.arrives[3:, first].float().mean(0)
    assert 0.38 < shares.mean() < 0.42
    assert shares.std() > 0.1  # the rate is drawn, too
    assert delivery.arrives[2:, second].all()
    assert not delivery.arrives[:2, second].any()
    # Drawn once per episode.
    assert (delivery.delay == delivery.delay[0]).all()
    assert (delivery.levels == delivery.levels[0]).all()


def test_steps_of_delivery_are_joined(load):
    wiring = Wiring(load(TALKING_TEAM))
    post = Post(wiring, 2, torch.Generator().manual_seed(0))
    steps = [post.step(torch.tensor([t == 0, t in (0, 2)])) for t in range(4)]
    assert joined(steps).arrives.shape == (4, len(wiring.links), 2)


# Through time


def sequences(students, begins, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps, episodes = begins.shape
    robots = len(students.widths)
    inputs = torch.randn(
        steps, episodes, robots, max(students.restriction.sizes), generator=generator
    )
    for robot, size in enumerate(students.restriction.sizes):
        inputs[:, :, robot, size:] = 0.0
    return inputs, torch.ones(steps, episodes, robots, 5, dtype=torch.bool)


@pytest.fixture(params=NETWORKS)
def students(request, load):
    torch.manual_seed(0)
    made = opinionated(
        StudentTeam(load(TALKING_TEAM, f"defaults.student.network={request.param}"))
    )
    with torch.no_grad():
        for robot, peers in enumerate(made.wiring.peers):
            made.message_ages[robot, : made.widths[robot], :peers].normal_()
    return made


def run(students, inputs, mask, begins, delivery, state=None, mail=None):
    episodes = begins.shape[1]
    state = students.initial_state(episodes) if state is None else state
    mail = students.initial_mail(episodes) if mail is None else mail
    return students(inputs, mask, begins, state, delivery, mail)


def part(delivery, steps):
    return type(delivery)(*(field[steps] for field in delivery))


def test_step_by_step_equals_whole_sequences(students, load):
    begins = some_begins()
    _, delivery = delivered(load(TALKING_TEAM), begins)
    inputs, mask = sequences(students, begins)
    whole = run(students, inputs, mask, begins, delivery)
    state = mail = None
    for t in range(len(begins)):
        now = slice(t, t + 1)
        step = run(students, inputs[now], mask[now], begins[now], part(delivery, now), state, mail)
        state, mail = step.state, step.mail
        torch.testing.assert_close(step.logits[0], whole.logits[t])
        torch.testing.assert_close(step.message[0], whole.message[t])
    for found, expected in zip(mail, whole.mail, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("acting", "of_messages"),
    [(True, 0), (True, 2), (False, 2)],
    ids=["logits", "both", "messages"],
)
def test_the_backward_by_hand_is_autograds(load, monkeypatch, network, acting, of_messages):
    begins = some_begins()
    team = load(TALKING_TEAM, f"defaults.student.network={network}")
    _, delivery = delivered(team, begins)
    torch.manual_seed(0)
    students = opinionated(StudentTeam(team))
    inputs, mask = sequences(students, begins)
    weight = torch.randn(*begins.shape, 3, 5)
    found = {}
    for name in ("by hand", "plainly"):
        if name == "plainly":
            monkeypatch.setattr(distil_student, "unroll", unrolled_plainly)
        students.zero_grad()
        output = run(students, inputs, mask, begins, delivery)
        loss = (output.logits * weight).sum()
        if of_messages:
            loss = of_messages * (output.message * weight[..., :3]).sum() + (loss if acting else 0)
        loss.backward()
        found[name] = (
            output,
            {
                key: value.grad.clone()
                for key, value in students.named_parameters()
                if value.grad is not None
            },
        )
    (ours, own), (theirs, expected) = found["by hand"], found["plainly"]
    for field in ("logits", "message", "held"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field))
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(own[name], gradient, atol=1e-4, rtol=1e-4)


def test_a_receivers_loss_reaches_the_senders_head_through_the_message_only(students, load):
    """robot_2's loss moves robot_0 and robot_1; robot_0's moves nobody else."""
    begins = some_begins()
    _, delivery = delivered(load(TALKING_TEAM), begins)
    inputs, mask = sequences(students, begins)

    def moved(receiver, delivery):
        students.zero_grad()
        run(students, inputs, mask, begins, delivery).logits[
            :, :, receiver
        ].square().sum().backward()
        heads = students.message_head.weight.grad.abs().amax((1, 2)) > 0
        first = students.aligner.weight.grad.abs().amax((1, 2)) > 0
        return heads.tolist(), first.tolist()

    assert moved(2, delivery) == ([True, True, False], [True, True, True])
    assert moved(1, delivery) == ([True, False, False], [True, True, False])
    assert moved(0, delivery) == ([False, False, False], [True, False, False])
    cut = delivery._replace(arrives=torch.zeros_like(delivery.arrives))
    assert moved(2, cut) == ([False, False, False], [False, False, True])


def test_a_message_is_worked_out_by_hand(load):
    """One value from robot_0 to robot_1, rounded to int4, a step late; every layer is identity."""
    team = load(
        {
            "base": "simple_spread_lh",
            "defaults": {"student": {"network": "mlp", "width": 1}},
            "robots": {"robot_0": {"messages": {"size": 1, "to": ["robot_1"], "format": "int4"}}},
        }
    )
    students = StudentTeam(team)
    with torch.no_grad():
        for parameter in students.parameters():
            parameter.zero_()
        students.aligner.weight[0, 0, 0] = students.hidden.weight[0, 0, 0] = 1.0
        students.core.weight[:2, 0, 0] = students.message_head.weight[0, 0, 0] = 1.0
        students.message_values[1, 0, 0] = students.message_ages[1, 0, 0] = 1.0
        students.head.weight[1, 0, 0] = 1.0
    begins = torch.tensor([[True], [False], [False]])
    _, delivery = delivered(team, begins)
    inputs = torch.zeros(3, 1, 3, max(students.restriction.sizes))
    inputs[:, 0, 0, 0] = torch.tensor([0.3, 0.8, 0.0], requires_grad=False)
    inputs.requires_grad_()
    output = run(students, inputs, torch.ones(3, 1, 3, 5, dtype=torch.bool), begins, delivery)
    # tanh(0.3) = 0.291 -> 2/7, tanh(0.8) = 0.664 -> 5/7; the age is 1 of 11, at first 11 of 11.
    expected = [0 + 11 / 11, 2 / 7 + 1 / 11, 5 / 7 + 1 / 11]
    np.testing.assert_allclose(output.logits[:, 0, 1, 0].detach(), expected, rtol=1e-6)
    output.logits[1, 0, 1, 0].backward()
    slope = 1 - np.tanh(0.3) ** 2  # rounding is passed through
    np.testing.assert_allclose(inputs.grad[:, 0, 0, 0], [slope, 0, 0], rtol=1e-6)


def test_an_episode_knows_nothing_of_the_messages_before(students, load):
    begins = torch.zeros(8, 4, dtype=torch.bool)
    begins[[0, 4]] = True
    _, delivery = delivered(load(TALKING_TEAM), begins)
    inputs, mask = sequences(students, begins)
    before = run(students, inputs, mask, begins, delivery).logits
    inputs[:4] += 3.0
    after = run(students, inputs, mask, begins, delivery).logits
    assert not torch.equal(after[:4], before[:4])
    assert torch.equal(after[4:], before[4:])


# Training and deployment


def recipe(**changes):
    lines = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return from_mapping(Recipe, with_changes(DISTILLATION_RECIPE, lines), "recipe")


@pytest.fixture
def make_work(load):
    def make(document, network="mlp", **changes):
        team = load(document, f"defaults.student.network={network}")
        return Work(team, *make_teacher(team.task.spec), recipe(**changes), 0)

    return make


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_learned_from_is_what_was_acted_on(make_work, network):
    """In parts shorter than the rollout, with the mail that there was: ratios are one."""
    work = make_work(TALKING_TEAM, network)
    task = work.team.task
    torch.manual_seed(0)
    students = opinionated(StudentTeam(work.team))
    acting = StudentsActing(students, 0)
    rollout = Collector(task.spec, task.make_batch(6), 50, 0, anew=True).collect(acting, 0)
    batch = acting.batch(label(rollout, work.teacher, work.card, None))
    assert batch.inputs.shape[:2] == (25, 12)
    output = students(
        batch.inputs, batch.labels.action_mask, batch.labels.begins, batch.state, batch.delivery,
        batch.mail,
    )  # fmt: skip
    chosen = output.log_probs.gather(-1, batch.labels.action.long()[..., None])[..., 0]
    torch.testing.assert_close(chosen, batch.labels.behaviour)
    assert batch.mail.held[:, :6].abs().max() == 0
    halves = StudentsActing(students, 0)
    rollout = Collector(task.spec, task.make_batch(6), 26, 0, anew=True).collect(halves, 0)
    batch = halves.batch(label(rollout, work.teacher, work.card, None))
    assert batch.inputs.shape[:2] == (13, 12)
    assert batch.mail.held[:, 6:].abs().max() > 0


@pytest.mark.parametrize(
    ("document", "network"), list(itertools.product([LIMITED, TALKING_TEAM], NETWORKS))
)
def test_from_teacher_to_bundles_that_play(make_work, tmp_path, document, network):
    """Both phases, export checked against torch, bundles read again, the same episodes played."""
    work = make_work(document, network, offline__updates=4, on_policy__iterations=2)
    students = distil(work, lambda *_: None, folder=tmp_path / "run")
    exported = export(work, students)
    played = measure(work.team, work.teacher, exported, 3, seed=0)
    write_team(exported, played.measured, tmp_path / "bundles", overwrite=False)
    policies = load_bundles(work.team, tmp_path / "bundles")
    again = list(play(work.team.task.make_reference(), BundlePlayer(policies, work.team), 3, 0))
    assert [episode.team_return for episode in again] == list(played.returns["student"])
    told = policies[0].manifest.message
    bits = {"int8": 8, "int4": 4}[told.format] * 3
    assert (told.bits_per_decision, told.bits_per_second) == (bits, bits * 10.0)
    assert [policy.manifest.peers for policy in policies] == [r.peers for r in work.team.robots]


def test_bundles_play_as_the_students_were_trained(load):
    """Whole episodes in torch and in ONNX Runtime with inboxes, messages and all."""
    team = load(LIMITED)
    torch.manual_seed(0)
    students = opinionated(StudentTeam(team))
    work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
    policies = [BundlePolicy(item.draft, item.model) for item in export(work, students)]
    player, env = BundlePlayer(policies, team), team.task.make_reference()
    post = mail = None
    for episode in range(2):
        view, done, step = env.reset(episode), False, 0
        player.reset(episode)
        while not done:
            if step == 0:
                post = Post(students.wiring, 1, torch.Generator().manual_seed(0))
                mail = students.initial_mail(1)
            actions = player.act(view)
            begins = torch.tensor([[step == 0]])
            observation = torch.from_numpy(np.stack(view.observations))[None, None]
            output = students(
                students.restriction.inputs(observation, None),
                torch.ones(1, 1, 3, 5, dtype=torch.bool),
                begins,
                students.initial_state(1),
                post.step(begins[0]),
                mail,
            )
            mail = output.mail
            assert output.logits[0, 0].argmax(-1).tolist() == actions
            view, _, done, _ = env.step(actions)
            step += 1


def test_what_is_told_changes_what_is_done(load):
    team = load(LIMITED)
    torch.manual_seed(0)
    work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
    exported = export(work, opinionated(StudentTeam(team)))
    policies = [BundlePolicy(item.draft, item.model) for item in exported]

    def actions(**disturbance):
        player = BundlePlayer(policies, team, Disturbance(**disturbance))
        return [e.actions for e in play(team.task.make_reference(), player, 3, 0)]

    assert actions() == actions()
    assert actions(loss=0.3) == actions(loss=0.3)
    assert (
        len(
            {str(actions(**how)) for how in ({}, {"loss": 1.0}, {"loss": 0.3}, {"delay_steps": 2})}
        )
        == 4
    )


def divergence_of_listener(load, network, messages, prepare, weights, updates):
    """KL of robot_1, which shall do what robot_0 saw a step ago and nobody else can see."""
    begins = torch.zeros(6, 32, dtype=torch.bool)
    begins[0] = True
    team = load(
        {"base": "simple_spread_lh", "robots": {"robot_0": {"messages": None}}},
        f"defaults.student={{network: {network}, width: 8}}",
        f"robots.robot_0.messages={messages}",
    )
    torch.manual_seed(0)
    learner = make_learner(prepare(StudentTeam(team)), recipe())
    for number in range(updates):
        batch = told_what_to_do(learner.students, begins, number)
        terms = learner.update(batch, Weights(**OFF | {"kl": 1.0} | weights), 3e-2)
    return float(terms.kl)


IGNORANT = 0.57  # a coin for five of six steps: 5/6 ln 2


@pytest.mark.parametrize("network", NETWORKS)
def test_a_message_that_helps_is_learned(load, network):
    # Of clear opinions: who is not listened to has little to learn, and the reverse.
    silent, speaking = (
        divergence_of_listener(load, network, messages, opinionated, {}, 180)
        for messages in ("null", "{size: 1, to: [robot_1]}")
    )
    assert silent > IGNORANT
    assert speaking < 0.3


def test_grounded_messages_are_learned_by_beginners(load):
    """Students without opinions, as all begin."""
    beside, grounded = (
        divergence_of_listener(
            load, "mlp", "{size: 1, to: [robot_1]}", lambda students: students, weights, 120
        )
        for weights in ({}, {"grounding": 0.1})
    )
    assert beside > IGNORANT
    assert grounded < 0.2


@pytest.mark.parametrize("network", NETWORKS)
def test_grounded_messages_say_what_their_senders_sense(load, network):
    """Three values of one and two of another; a robot that tells nothing learns nothing."""
    torch.manual_seed(0)
    team = load(
        TALKING_TEAM, f"defaults.student.network={network}", "robots.robot_2.messages=null"
    )
    students = StudentTeam(team)
    learner = make_learner(students, recipe())
    begins = torch.zeros(6, 64, dtype=torch.bool)
    begins[0] = True
    before = students.aligner.weight.detach().clone()
    # Of no advantage: nothing but messages is learned.
    weights = Weights(**OFF | {"ppo": 1.0, "grounding": 1.0})
    errors = [
        float(learner.update(told_what_to_do(students, begins, n), weights, 1e-2).grounding)
        for n in range(300)
    ]
    # Independent features of variance one, ten and four: three and two can be told at best.
    assert errors[0] > 13
    assert 9 < np.mean(errors[-20:]) < 11
    assert (students.aligner.weight != before).any((1, 2)).tolist() == [True, True, False]


def test_grounding_is_in_features_and_not_in_which_of_them_are_shown(load):
    team = load(
        {"base": "simple_spread_random"},
        "defaults.messages={size: 2, to: all}",
        "robots.robot_1.messages=null",
        "robots.robot_2.sensors=[velocity, position]",
        "robots.robot_2.random_features=null",
    )
    students = StudentTeam(team)
    heads, restriction = CoordinationHeads(students, 4, 2), students.restriction
    observation = torch.randn(5, 3, 18)
    visible = restriction.draw(5, torch.Generator().manual_seed(0))
    found = heads.sensed_by_senders(restriction.inputs(observation, visible))
    assert found.shape == (5, 2, 14)  # all but the block that is always zero
    assert torch.equal(found[:, 0], (observation * visible)[:, 0, :14])
    assert torch.equal(found[:, 1, :4], observation[:, 2, :4])
    assert (found[:, 1, 4:] == 0).all()


def told_what_to_do(students, begins, seed):
    """Labels that tell robot_1 to go by the sign of robot_0's first feature a step ago."""
    generator = torch.Generator().manual_seed(seed)
    inputs, mask = sequences(students, begins, seed)
    seen = torch.zeros(*begins.shape)
    seen[1:] = inputs[:-1, :, 0, 0].sign()
    teacher = torch.zeros(*begins.shape, 3, 5)
    teacher[:, :, 1, 0], teacher[:, :, 1, 1] = 8 * seen, -8 * seen
    nothing = torch.zeros(*begins.shape, 3)
    labels = Labels(
        action_mask=mask,
        action=nothing.to(torch.uint8),
        behaviour=nothing,
        begins=begins,
        advantage=nothing[..., 0],
        teacher=torch.log_softmax(teacher, -1),
        cosines=nothing,
        roles=nothing[..., None],
    )
    batch = Batch(inputs, students.initial_state(begins.shape[1]), labels)
    if students.wiring is None:
        return batch
    delivery = draw_delivery(students.wiring, begins, generator)
    return batch._replace(delivery=delivery, mail=students.initial_mail(begins.shape[1]))


# Bundles that do not belong together


@pytest.mark.parametrize(
    ("change", "robot", "words"),
    [
        ("defaults.messages.size=4", "robot_0", ["message", "3 values as int8", "4 values"]),
        ("defaults.messages.format=int4", "robot_0", ["message", "int8", "int4"]),
        (
            "robots.robot_2.messages={size: 4}",
            "robot_0",
            ["peers: robot_2", "3 values", "4 values"],
        ),
        ("defaults.messages.delay_steps=2", "robot_0", ["peers: robot_1", "1 steps", "2 steps"]),
        ("robots.robot_1.messages=null", "robot_0", ["peers", "robot_1"]),
        ("defaults.messages=null", "robot_0", ["message", "silence"]),
    ],
)
def test_bundles_of_another_agreement_are_refused(load, tmp_path, refusal, change, robot, words):
    team = load(LIMITED)
    work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
    torch.manual_seed(0)
    write_team(export(work, StudentTeam(team)), None, tmp_path / "bundles", overwrite=False)
    message = refusal(load_bundles, load(LIMITED, change), tmp_path / "bundles")
    assert f"{robot}/manifest.json" in message
    for word in (*words, "distil the team again"):
        assert word in message


def test_bundles_of_two_trainings_are_not_mixed(load, tmp_path, refusal):
    """Sizes and formats fit, but what messages mean was learned twice."""
    team = load(LIMITED)
    work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        write_team(export(work, StudentTeam(team)), None, tmp_path / name, overwrite=False)
        assert len(load_bundles(team, tmp_path / name)) == 3
    shutil.rmtree(tmp_path / "first" / "robot_1")
    shutil.copytree(tmp_path / "second" / "robot_1", tmp_path / "first" / "robot_1")
    message = refusal(load_bundles, team, tmp_path / "first")
    assert message.startswith(f"{tmp_path / 'first' / 'robot_1' / 'manifest.json'}: training: ")
    assert "of robot_0" in message
    assert "copy all bundles" in message


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("peers", [{"robot": "robot_0"}], ["missing key"]),
        ("message.format", "int9", ["format", "int9"]),
        ("message.size", 0, ["size"]),
        ("message.size", 4, ["bits_per_decision: 24 is not the 32 of 4 values as int8"]),
        ("training", "me", ["training: 'me' is not eight hexadecimal digits"]),
    ],
)
def test_manifests_are_checked(load, tmp_path, refusal, path, value, words):
    team = load(LIMITED)
    work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
    torch.manual_seed(0)
    write_team(export(work, StudentTeam(team)), None, tmp_path / "bundles", overwrite=False)
    file = tmp_path / "bundles" / "robot_0" / "manifest.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    message = refusal(load_bundles, team, tmp_path / "bundles")
    for word in words:
        assert word in message
