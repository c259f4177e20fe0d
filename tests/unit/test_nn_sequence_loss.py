"""The loss of whole sequences, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from surefoot.nn.sequence_loss import SequenceAccuracyLoss

# Probabilities of the right token: 1/2 and 1/4 in the first sequence, 1/5 in the second.
LOGITS = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.2, 0.8], [0.9, 0.1]]]).log()
TARGETS = torch.tensor([[0, 0], [0, -100]])


def test_plain_cross_entropy_is_the_default() -> None:
    found = SequenceAccuracyLoss()(LOGITS, TARGETS)
    assert float(found.loss) == pytest.approx(math.log(2 * 4 * 5))
    assert found.right.tolist() == [0.0, 0.0]


def test_the_second_term_is_the_chance_of_a_wrong_answer() -> None:
    found = SequenceAccuracyLoss(weight=3.0)(LOGITS, TARGETS)
    by_hand = 2 * (1 - 1 / 8) + 1 * (1 - 1 / 5)  # sequences of two tokens and of one
    assert float(found.loss) == pytest.approx(math.log(40) + 3.0 * by_hand)


def test_a_sequence_is_right_when_all_that_counts_is() -> None:
    found = SequenceAccuracyLoss()(LOGITS, torch.tensor([[0, 1], [1, -100]]))
    assert found.right.tolist() == [1.0, 1.0]
    assert float(found.hits) == 3.0
    half = SequenceAccuracyLoss()(LOGITS, torch.tensor([[0, 1], [1, 1]]))
    assert half.right.tolist() == [1.0, 0.0]


def test_what_does_not_count_has_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    SequenceAccuracyLoss(weight=1.0)(logits, TARGETS).loss.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[1, 1]) == 0
    assert torch.count_nonzero(logits.grad[0]) == 4
