"""A step that is played on a processor takes what it takes on a card, where the two differ."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from surefoot.engine.auto.ledger import Ledger
from surefoot.engine.foresee.on_card import as_on_card
from surefoot.nn import lean
from surefoot.ops import CROSS_ENTROPY
from surefoot.ops.cross_entropy import pieces


@pytest.mark.parametrize("card", [False, True])
def test_the_loss_of_a_card_has_larger_pieces_in_fp32(card: bool) -> None:
    words, width, books = 1000, 16, Ledger(processors=132 if card else None)
    with FakeTensorMode(), books, as_on_card(132) if card else nullcontext():
        hidden = torch.empty(4096, width, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(words, width, dtype=torch.bfloat16)
        begun = books.mark()
        CROSS_ENTROPY.ways["chunked"].call(hidden, weight, torch.zeros(4096, dtype=torch.int64))
        peak, alive = books.peak(begun)
    positions, softmax = (1024, 1024) if card else (2048, 64)
    assert pieces(not card) == (positions, softmax)
    shapes = [(entry.shape, entry.nbytes) for entry in alive]
    assert ((positions, words), positions * words * 2) in shapes
    assert shapes.count(((softmax, words), softmax * words * 4)) == 2
    assert peak < positions * words * 2 + 2 * softmax * words * 4 + 5e5  # of one piece alone


def test_autocast_widens_what_that_of_cuda_widens() -> None:
    x = torch.ones(3, 8, dtype=torch.bfloat16)
    calls: dict[str, Any] = {
        "power": lambda: torch.pow(x, 3.0), "method": lambda: x.pow(2), "sign": lambda: x**2,
        "norm": lambda: F.layer_norm(x, (8,)), "root": lambda: torch.rsqrt(x),
    }  # fmt: skip
    narrow = torch.bfloat16
    with as_on_card(132):
        assert {call().dtype for call in calls.values()} == {narrow}
        with torch.autocast("cpu", narrow):
            assert [n for n, call in calls.items() if call().dtype != torch.float32] == []
            assert torch.tanh(x).dtype == (x @ x.T).dtype == narrow
    with torch.autocast("cpu", narrow):
        assert torch.pow(x, 3.0).dtype == narrow


def test_shared_keys_are_copied_for_cards_without_flash_attention() -> None:
    key = torch.ones(1, dtype=torch.float16)
    for processors, taken in ((132, True), (0, False)):
        with as_on_card(processors):
            assert lean.takes_shared(key) is taken and not lean.takes_shared(key, frugal=True)
            assert not lean.takes_shared(key.float())
            with torch.autocast("cpu", torch.float16):
                assert lean.takes_shared(key.float()) is taken
    assert lean.takes_shared(key)
