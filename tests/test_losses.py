"""Each term of the students' objective against numbers worked out by hand.

Most use two actions: logits (ln 3, 0) are the probabilities (3/4, 1/4).
"""

import math

import pytest
import torch
from helpers import OFF
from torch.nn.functional import softmax

from kdmarl_core.distil.coordination import fit_roles
from kdmarl_core.distil.losses import (
    Terms,
    Weights,
    critic_free_ppo,
    entropy,
    hard_cross_entropy,
    policy_kl,
    relational_structure,
    role_alignment,
    soft_cross_entropy,
    total,
)
from kdmarl_core.teacher.returns import ppo_clip
from kdmarl_core.teacher.teacher import mask_logits

LN2, LN3 = math.log(2), math.log(3)
TEACHER = torch.tensor([[[LN3, 0.0]]])  # one sample, one agent: (3/4, 1/4)
UNIFORM = torch.zeros(1, 1, 2)
FORWARD_KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
REVERSE_KL = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)


def softened_kl(temperature):
    """KL of the softened teacher from the uniform student, without any factor."""
    odds = 3 ** (1 / temperature)
    p, q = odds / (1 + odds), 1 / (1 + odds)
    return LN2 + p * math.log(p) + q * math.log(q)


# Kullback-Leibler


def test_kl_by_hand():
    assert float(policy_kl(TEACHER, UNIFORM, 1.0)) == pytest.approx(FORWARD_KL, abs=1e-6)


def test_kl_is_zero_only_for_equals():
    assert float(policy_kl(TEACHER, TEACHER + 7.0, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(policy_kl(TEACHER, -TEACHER, 2.0)) > 0.1


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
        student = torch.zeros(1, 1, 2, requires_grad=True)
        policy_kl(TEACHER, student, temperature).backward()
        return float(student.grad.abs().max())

    # For large temperatures it tends to the logits' difference / 4.
    assert gradient(50.0) == pytest.approx(LN3 / 4, rel=1e-2)
    assert gradient(100.0) == pytest.approx(gradient(50.0), rel=1e-2)


# Cross-entropy


def test_cross_entropy_takes_the_hard_label():
    student = torch.tensor([[[0.0, LN3]]])  # (1/4, 3/4), the teacher would take the first
    found = float(hard_cross_entropy(TEACHER, student))
    assert found == pytest.approx(math.log(4), abs=1e-6)
    soft = 0.75 * math.log(4) + 0.25 * math.log(4 / 3)  # negative control: eq. 8 as printed
    assert abs(found - soft) > 0.1


def test_cross_entropy_heeds_only_the_teachers_choice():
    student = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    expected = hard_cross_entropy(teacher, student)
    assert torch.equal(hard_cross_entropy(0.01 * teacher, student), expected)
    assert not torch.isclose(hard_cross_entropy(-teacher, student), expected)


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
    assert float(entropy(torch.tensor([[logits]]))) == pytest.approx(expected, abs=1e-6)


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
    behaviour = torch.tensor([[math.log(0.4)]])
    log_prob = (behaviour + math.log(ratio)).requires_grad_()
    found = critic_free_ppo(log_prob, behaviour, torch.tensor([advantage]), 0.2)
    found.backward()
    assert found.item() == pytest.approx(expected, abs=1e-6)
    assert bool(log_prob.grad.abs() > 0) == learns
    if learns:
        assert float(log_prob.grad) == pytest.approx(ratio * advantage, abs=1e-6)
    teachers = ppo_clip(torch.tensor(ratio), torch.tensor(advantage), 0.2)
    assert float(teachers) == pytest.approx(expected, abs=1e-6)


# Sums and means


def test_terms_sum_over_agents_and_average_over_samples():
    teacher = TEACHER.expand(4, 3, 2).clone()
    teacher[2:] = 0.0  # two of four samples agree with the student
    uniform = torch.zeros(4, 3, 2)
    kl = float(policy_kl(teacher, uniform, 1.0))
    assert kl == pytest.approx(3 * FORWARD_KL / 2, abs=1e-6)
    assert float(entropy(uniform)) == pytest.approx(3 * LN2, abs=1e-6)
    assert float(hard_cross_entropy(teacher, uniform)) == pytest.approx(3 * LN2, abs=1e-6)
    ratio = torch.log(torch.tensor([[1.0, 0.5], [1.0, 1.5]]))
    objective = critic_free_ppo(ratio, torch.zeros(2, 2), torch.tensor([1.0, -2.0]), 0.2)
    assert float(objective) == pytest.approx((1.0 + 0.5 - 2.0 - 3.0) / 2, abs=1e-6)


# Masks

MASK = torch.tensor([[[True, True, False], [True, False, True]]])
RAW_TEACHER = torch.tensor([[[LN3, 0.0, 9.0], [LN3, 9.0, 0.0]]])
RAW_STUDENT = torch.tensor([[[0.0, 0.0, -5.0], [0.0, 30.0, 0.0]]])


def test_masked_actions_have_no_probability_at_all():
    probabilities = softmax(mask_logits(RAW_STUDENT, MASK), -1)
    assert (probabilities[~MASK] == 0).all()
    assert probabilities[MASK].tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (lambda t, s: policy_kl(t, s, 1.0), 2 * FORWARD_KL),
        (lambda t, s: policy_kl(t, s, 2.0), 2 * 4 * softened_kl(2.0)),
        (hard_cross_entropy, 2 * LN2),
        (lambda t, s: entropy(s), 2 * LN2),
    ],
    ids=["kl", "kl at temperature 2", "cross-entropy", "entropy"],
)
def test_masked_actions_contribute_nothing(term, expected):
    student = RAW_STUDENT.clone().requires_grad_()
    found = term(mask_logits(RAW_TEACHER, MASK), mask_logits(student, MASK))
    found.backward()
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert (student.grad[~MASK] == 0).all()
    assert torch.isfinite(student.grad).all()
    # Negative control: with another mask, another number.
    wrong = MASK.roll(1, -1)
    other = term(mask_logits(RAW_TEACHER, wrong), mask_logits(RAW_STUDENT, wrong))
    assert not math.isclose(float(other), expected, abs_tol=1e-2)


def test_one_action_left_gives_zeros():
    mask = torch.tensor([[[False, True, False]]])
    teacher, student = (
        mask_logits(torch.ones(1, 1, 3), mask),
        mask_logits(torch.zeros(1, 1, 3), mask),
    )
    terms = (policy_kl(teacher, student, 3.0), hard_cross_entropy(teacher, student))
    assert [float(term) for term in (*terms, entropy(student))] == [0.0, 0.0, 0.0]


# Structure and roles

# Two agents at right angles, and two that look the same way, in two samples.
EMBEDDING = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]]])
ALIKE = torch.tensor([[[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]]).expand(2, 2, 3)


def test_structure_by_hand():
    # Cosines of the pair: teacher 0 and 1, student 1 and 1.
    found = relational_structure(EMBEDDING, ALIKE)
    assert float(found) == pytest.approx((1.0 + 0.0) / 2, abs=1e-6)
    assert float(relational_structure(EMBEDDING, 5 * EMBEDDING)) == pytest.approx(0.0, abs=1e-6)


def test_structure_counts_each_pair_once():
    teacher = torch.eye(3)[None]  # all cosines 0
    student = torch.ones(1, 3, 4)  # all cosines 1
    assert float(relational_structure(teacher, student)) == pytest.approx(3.0, abs=1e-6)


def test_roles_by_hand():
    teacher = torch.tensor([[[2 * LN3, 0.0]]])
    uniform = torch.zeros(1, 1, 2)
    # At tau = 2 the teacher's roles are 3:1.
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(role_alignment(teacher, uniform, 2.0)) == pytest.approx(expected, abs=1e-6)
    assert float(role_alignment(teacher, uniform, 1.0)) != pytest.approx(expected, abs=1e-2)
    assert float(role_alignment(teacher, teacher, 2.0)) == 0.0


def test_roles_are_clusters_of_the_teachers_embeddings():
    torch.manual_seed(0)
    centres = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    member = torch.arange(300) % 3
    embedding = centres[member] + 0.1 * torch.randn(300, 3)
    projection = fit_roles(embedding, roles=3, seed=0)
    scores = embedding @ projection.T
    assert float(scores.std()) == pytest.approx(1.0, abs=1e-5)
    chosen = scores.argmax(1)
    assert all(len(chosen[member == i].unique()) == 1 for i in range(3))
    assert len(chosen.unique()) == 3


def test_collapsed_roles_cost():
    """A student whose robots all play one role is told apart from one that keeps the roles."""
    scores = 3 * torch.eye(3)[None]
    collapsed = scores[:, :1].expand(1, 3, 3)
    assert float(role_alignment(scores, collapsed, 1.0)) > 1.0


def test_soft_cross_entropy_is_the_divergence_and_the_teachers_entropy():
    teacher, student = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    found = soft_cross_entropy(teacher, student)
    expected = policy_kl(teacher, student, 1.0) + entropy(teacher)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


# The whole objective

SIGNS = dict.fromkeys(OFF, 1) | {"ppo": -1, "entropy": -1}
VALUES = (2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0)


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


def test_total_adds_up():
    terms = Terms(*map(torch.tensor, VALUES))
    weights = Weights(*(10.0**i for i in range(7)))
    assert float(total(terms, weights)) == -2 + 30 + 500 + 7e3 + 11e4 + 13e5 - 17e6


@pytest.mark.parametrize("name", list(OFF))
def test_negative_weights_are_refused(name, refusal):
    message = refusal(lambda: Weights(**OFF | {name: -0.5}))
    assert name in message
    assert "-0.5" in message
