"""Each term of the students' objective against numbers worked out by hand.

Policies are log-probabilities; most have two actions, of probabilities 3/4 and 1/4.
"""

import math

import pytest
import torch
from helpers import OFF
from torch.nn.functional import log_softmax

from kdmarl_core.distil.coordination import fit_roles, role_scores
from kdmarl_core.distil.losses import (
    Terms,
    Weights,
    critic_free_ppo,
    entropy,
    grounding,
    hard_cross_entropy,
    pair_cosines,
    policy_kl,
    relational_structure,
    role_alignment,
    soft_cross_entropy,
    total,
)
from kdmarl_core.distil.samples import ILLEGAL
from kdmarl_core.teacher.returns import ppo_clip
from kdmarl_core.teacher.teacher import mask_logits

LN2, LN3 = math.log(2), math.log(3)
TEACHER = torch.tensor([[[0.75, 0.25]]]).log()  # one sample, one agent
UNIFORM = torch.full((1, 1, 2), 0.5).log()
SWAPPED = TEACHER.flip(-1)
FORWARD_KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
REVERSE_KL = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)


def softened_kl(temperature):
    """KL of the softened teacher from the uniform student, without any factor."""
    odds = 3 ** (1 / temperature)
    p, q = odds / (1 + odds), 1 / (1 + odds)
    return LN2 + p * math.log(p) + q * math.log(q)


def random_policy(seed):
    generator = torch.Generator().manual_seed(seed)
    return log_softmax(torch.randn(4, 3, 5, generator=generator), -1)


# Kullback-Leibler


def test_kl_by_hand():
    assert float(policy_kl(TEACHER, UNIFORM, 1.0)) == pytest.approx(FORWARD_KL, abs=1e-6)


def test_kl_is_zero_only_for_equals():
    assert float(policy_kl(TEACHER, TEACHER.clone(), 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(policy_kl(TEACHER, SWAPPED, 2.0)) > 0.1


def test_kl_is_not_reversed():
    """Negative control: KL(pi_S || pi_T) is another number."""
    found = float(policy_kl(TEACHER, UNIFORM, 1.0))
    assert abs(found - REVERSE_KL) > 0.01
    assert float(policy_kl(UNIFORM, TEACHER, 1.0)) == pytest.approx(REVERSE_KL, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_kl_carries_the_square_of_the_temperature(temperature):
    found = float(policy_kl(TEACHER, UNIFORM, temperature))
    assert found == pytest.approx(temperature**2 * softened_kl(temperature), rel=1e-5)
    for wrong in (1.0, temperature, temperature**3):  # negative controls
        assert found != pytest.approx(wrong * softened_kl(temperature), rel=1e-2)


def test_kl_gradient_keeps_its_size_when_the_temperature_changes():
    def gradient(temperature):
        logits = torch.zeros(1, 1, 2, requires_grad=True)
        policy_kl(TEACHER, log_softmax(logits, -1), temperature).backward()
        return float(logits.grad.abs().max())

    # For large temperatures it tends to the logits' difference / 4.
    assert gradient(50.0) == pytest.approx(LN3 / 4, rel=1e-2)
    assert gradient(100.0) == pytest.approx(gradient(50.0), rel=1e-2)


# Cross-entropy


def test_cross_entropy_takes_the_hard_label():
    found = float(hard_cross_entropy(TEACHER, SWAPPED))  # the teacher would take the first
    assert found == pytest.approx(math.log(4), abs=1e-6)
    soft = 0.75 * math.log(4) + 0.25 * math.log(4 / 3)  # negative control: eq. 8 as printed
    assert abs(found - soft) > 0.1


def test_cross_entropy_heeds_only_the_teachers_choice():
    student, teacher = random_policy(0), random_policy(1)
    expected = hard_cross_entropy(teacher, student)
    assert torch.equal(hard_cross_entropy(log_softmax(0.01 * teacher, -1), student), expected)
    assert not torch.isclose(hard_cross_entropy(log_softmax(-teacher, -1), student), expected)


# Entropy


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], math.log(4)),
        ([LN3, 0.0], 2 * LN2 - 0.75 * LN3),
        ([200.0, 0.0], 0.0),
    ],
)
def test_entropy_by_hand(logits, expected):
    policy = log_softmax(torch.tensor([[logits]]), -1)
    assert float(entropy(policy)) == pytest.approx(expected, abs=1e-6)


# PPO


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "learns"),
    [
        (1.5, 1.0, 1.2, False),  # good and already likelier: clipped
        (1.1, 1.0, 1.1, True),
        (0.5, 1.0, 0.5, True),
        (1.5, -1.0, -1.5, True),
        (0.9, -1.0, -0.9, True),
        (0.5, -1.0, -0.8, False),  # bad and already rarer: clipped
        (1.0, 2.0, 2.0, True),
    ],
)
def test_ppo_clips_on_both_sides(ratio, advantage, expected, learns):
    behaviour, action = torch.tensor([[math.log(0.4)]]), torch.tensor([[1]])
    taken = 0.4 * ratio
    student = torch.tensor([[[1 - taken, taken]]]).log().requires_grad_()
    found = critic_free_ppo(student, action, behaviour, torch.tensor([advantage]), 0.2)
    found.backward()
    assert found.item() == pytest.approx(expected, abs=1e-6)
    gradient = ratio * advantage if learns else 0.0  # of the action that was taken
    assert student.grad.flatten().tolist() == pytest.approx([0.0, gradient], abs=1e-6)
    teachers = ppo_clip(torch.tensor(ratio), torch.tensor(advantage), 0.2)
    assert float(teachers) == pytest.approx(expected, abs=1e-6)


# Sums and means


def test_terms_sum_over_agents_and_average_over_samples():
    uniform = UNIFORM.expand(4, 3, 2)
    teacher = TEACHER.expand(4, 3, 2).clone()
    teacher[2:] = uniform[2:]  # two of four samples agree with the student
    kl = float(policy_kl(teacher, uniform, 1.0))
    assert kl == pytest.approx(3 * FORWARD_KL / 2, abs=1e-6)
    assert float(entropy(uniform)) == pytest.approx(3 * LN2, abs=1e-6)
    assert float(hard_cross_entropy(teacher, uniform)) == pytest.approx(3 * LN2, abs=1e-6)
    behaviour = torch.log(0.5 / torch.tensor([[1.0, 0.5], [1.0, 1.5]]))  # the ratios' divisor
    action, advantage = torch.zeros(2, 2, dtype=torch.int64), torch.tensor([1.0, -2.0])
    objective = critic_free_ppo(uniform[:2, :2], action, behaviour, advantage, 0.2)
    assert float(objective) == pytest.approx((1.0 + 0.5 - 2.0 - 3.0) / 2, abs=1e-6)


# Masks

MASK = torch.tensor([[[True, True, False], [True, False, True]]])
RAW_TEACHER = torch.tensor([[[LN3, 0.0, 9.0], [LN3, 9.0, 0.0]]])
RAW_STUDENT = torch.tensor([[[0.0, 0.0, -5.0], [0.0, 30.0, 0.0]]])


def masked(logits, mask=MASK):
    """A policy whose masked actions have no probability at all."""
    policy = log_softmax(mask_logits(logits, mask), -1)
    assert (policy.exp()[~mask] == 0).all()
    return policy


def test_a_masked_policy_divides_among_what_is_left():
    assert masked(RAW_STUDENT).exp()[MASK].tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (lambda t, s: policy_kl(t, s, 1.0), 2 * FORWARD_KL),
        (lambda t, s: policy_kl(t, s, 2.0), 2 * 4 * softened_kl(2.0)),
        (hard_cross_entropy, 2 * LN2),
        (soft_cross_entropy, 2 * LN2),
        (lambda t, s: entropy(s), 2 * LN2),
    ],
    ids=["kl", "kl at temperature 2", "cross-entropy", "soft cross-entropy", "entropy"],
)
def test_masked_actions_contribute_nothing(term, expected):
    student = RAW_STUDENT.clone().requires_grad_()
    found = term(masked(RAW_TEACHER), masked(student))
    found.backward()
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert (student.grad[~MASK] == 0).all()
    assert torch.isfinite(student.grad).all()
    # As the expert buffer keeps the teacher.
    kept = masked(RAW_TEACHER).clamp(min=ILLEGAL).half()
    assert torch.isfinite(kept).all()
    found = term(kept.float(), masked(student.detach()))
    assert found.item() == pytest.approx(expected, rel=1e-3)
    # Negative control: with another mask, another number.
    wrong = MASK.roll(1, -1)
    other = term(masked(RAW_TEACHER, wrong), masked(RAW_STUDENT, wrong))
    assert not math.isclose(float(other), expected, abs_tol=1e-2)


def test_one_action_left_gives_zeros():
    mask = torch.tensor([[[False, True, False]]])
    teacher, student = masked(torch.ones(1, 1, 3), mask), masked(torch.zeros(1, 1, 3), mask)
    terms = (policy_kl(teacher, student, 3.0), hard_cross_entropy(teacher, student))
    assert [float(term) for term in (*terms, entropy(student))] == [0.0, 0.0, 0.0]


# Structure and roles

# Two agents at right angles, and two that look the same way, in two samples.
EMBEDDING = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]]])
ALIKE = torch.tensor([[[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]]).expand(2, 2, 3)


def test_cosines_are_those_of_each_pair_once():
    # Directions 0, 60 and 180 degrees, of any length; pairs (1, 0), (2, 0), (2, 1).
    embedding = torch.tensor([[2.0, 0.0], [0.5, 0.5 * math.sqrt(3)], [-7.0, 0.0]])
    found = pair_cosines(embedding.expand(4, 2, 3, 2))
    assert found.shape == (4, 2, 3)
    assert found[3, 1].tolist() == pytest.approx([0.5, -1.0, -0.5], abs=1e-6)
    assert pair_cosines(embedding[:1]).shape == (0,)  # one robot has no pair


def test_structure_by_hand():
    # Cosines of the pair: teacher 0 and 1, student 1 and 1.
    found = relational_structure(pair_cosines(EMBEDDING), ALIKE)
    assert float(found) == pytest.approx((1.0 + 0.0) / 2, abs=1e-6)
    found = relational_structure(pair_cosines(EMBEDDING), 5 * EMBEDDING)
    assert float(found) == pytest.approx(0.0, abs=1e-6)


def test_structure_sums_over_pairs():
    student = torch.ones(1, 3, 4)  # all cosines 1
    found = relational_structure(torch.tensor([[0.0, 0.5, -1.0]]), student)
    assert float(found) == pytest.approx(1.0 + 0.25 + 4.0, abs=1e-6)


def test_structure_of_students_without_any_embedding_is_finite():
    """ReLU can leave nothing of an embedding: no direction, no NaN."""
    student = torch.zeros(2, 2, 3, requires_grad=True)
    found = relational_structure(pair_cosines(EMBEDDING), student)
    found.backward()
    assert found.item() == pytest.approx((0.0 + 1.0) / 2, abs=1e-6)
    assert torch.isfinite(student.grad).all()


def test_roles_by_hand():
    teacher = torch.tensor([[[2 * LN3, 0.0]]])
    uniform = torch.zeros(1, 1, 2)
    # At tau = 2 the teacher's roles are 3:1.
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(role_alignment(teacher, uniform, 2.0)) == pytest.approx(expected, abs=1e-6)
    assert float(role_alignment(teacher, uniform, 1.0)) != pytest.approx(expected, abs=1e-2)
    assert float(role_alignment(teacher, teacher, 2.0)) == 0.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_roles_are_clusters_of_the_teachers_embeddings(shift, seed):
    """Wherever they lie: embeddings behind a ReLU are far from zero."""
    torch.manual_seed(0)
    centres = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 20.0]])
    member = torch.arange(300) % 3
    embedding = centres[member] + 0.1 * torch.randn(300, 3)
    embedding[:, 0] += shift
    scores = role_scores(embedding, fit_roles(embedding, roles=3, seed=seed))
    differences = scores - scores.mean(1, keepdim=True)
    assert float(differences.std()) == pytest.approx(1.0, abs=1e-4)
    chosen = scores.argmax(1)
    assert all(len(chosen[member == i].unique()) == 1 for i in range(3))
    assert len(chosen.unique()) == 3


def test_collapsed_roles_cost():
    """A student whose robots all play one role is told apart from one that keeps the roles."""
    scores = 3 * torch.eye(3)[None]
    collapsed = scores[:, :1].expand(1, 3, 3)
    assert float(role_alignment(scores, collapsed, 1.0)) > 1.0


def test_a_collapsed_role_projection_would_reward_collapse():
    """Negative control: why U_T is fitted and frozen, and what `fit_roles` must never give."""
    embedding = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    collapsed = torch.ones(4, 8 + 1)
    fitted = fit_roles(embedding, roles=4, seed=0)

    def cost_of_indifference(projection):
        scores = role_scores(embedding, projection)[:, None]
        return float(role_alignment(scores, torch.zeros(300, 1, 4), 1.0))

    assert cost_of_indifference(collapsed) == pytest.approx(0.0, abs=1e-6)
    assert cost_of_indifference(fitted) > 0.1


def test_soft_cross_entropy_is_the_divergence_and_the_teachers_entropy():
    teacher, student = random_policy(2), random_policy(3)
    found = soft_cross_entropy(teacher, student)
    expected = policy_kl(teacher, student, 1.0) + entropy(teacher)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_grounding_by_hand():
    """Two samples of two senders with two features; differences 1, 2, 0, -1 and all zero."""
    sensed = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    read = torch.tensor([[[0.0, 0.0], [3.0, 5.0]], [[5.0, 6.0], [7.0, 8.0]]])
    assert float(grounding(sensed, read)) == pytest.approx((1 + 4 + 0 + 1) / 2)
    assert float(grounding(sensed, sensed)) == 0.0


# The whole objective

SIGNS = dict.fromkeys(OFF, 1) | {"ppo": -1, "entropy": -1}
del SIGNS["grounding"]  # teaches no policy, and is refused alone
VALUES = (2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0)


@pytest.mark.parametrize(("name", "sign"), SIGNS.items())
def test_sign_of_each_term(name, sign):
    """Algorithm 1, line 14: only the PPO objective and the entropy are to grow."""
    terms = Terms(*(torch.tensor(value, requires_grad=True) for value in VALUES))
    loss = total(terms, Weights(**OFF | {name: 0.5}))
    loss.backward()
    assert loss.item() == sign * 0.5 * getattr(terms, name).item()
    # A weight of zero switches the others off.
    gradients = {key: term.grad for key, term in terms._asdict().items() if term.grad is not None}
    assert gradients == {name: sign * 0.5}


def test_a_term_that_is_switched_off_may_overflow():
    terms = Terms(*map(torch.tensor, VALUES))._replace(role=torch.tensor(math.inf))
    assert float(total(terms, Weights(**OFF | {"kl": 1.0}))) == terms.kl.item()


def test_all_weights_of_zero_are_refused(refusal):
    assert "all weights are 0" in refusal(lambda: Weights(**OFF))
    assert "all weights are 0" in refusal(lambda: Weights(**OFF | {"grounding": 1.0}))


def test_total_adds_up():
    terms = Terms(*map(torch.tensor, VALUES))
    weights = Weights(*(2.0**i for i in range(8)))
    assert float(total(terms, weights)) == -2 + 6 + 20 + 56 + 176 + 416 - 1088 + 2432


@pytest.mark.parametrize("name", list(OFF))
def test_negative_weights_are_refused(name, refusal):
    message = refusal(lambda: Weights(**OFF | {name: -0.5}))
    assert name in message
    assert "-0.5" in message
