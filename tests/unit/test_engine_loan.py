"""The state on loan: whenever an update ends it, the writer reads what was there before."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surefoot.engine import loan as module
from surefoot.engine.loan import Loan, Withheld
from surefoot.engine.state import Payload, Snapshot

PIECE = 64  # bytes


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", PIECE)


def payload() -> Payload:
    """Tensors of several types and sizes: empty, a number, less and more than a piece, not contiguous."""
    stream = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=stream)
    tied = draw(5, 7)
    files = {
        "a": {"w": draw(9, 11), "empty": draw(0, 3), "count": torch.tensor(3.0), "tied": tied},
        "b": {"turned": draw(6, 4).t(), "half": draw(33).bfloat16(), "tied": tied},
    }
    return Payload(files, {})


def live(lent: Payload) -> list[Tensor]:
    return [t for group in lent.tensors.values() for t in group.values()]


def scribble(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.fill_(-1.0)


def whole(lent: Payload) -> bytes:
    groups = (group for group in lent.tensors.values())
    values = (group[name] for group in groups for name in sorted(group))
    return b"".join(v.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for v in values)


def read(taken: Payload) -> Iterator[bytes]:
    assert taken.pieces is not None
    names = [(file, name) for file, group in taken.tensors.items() for name in sorted(group)]
    return map(bytes, chain.from_iterable(taken.pieces(*pair) for pair in names))


COUNT = sum(-(-t.nbytes // PIECE) for t in live(payload()))


@pytest.mark.parametrize("in_time", [0, 200, math.inf])
@pytest.mark.parametrize("moment", range(-1, COUNT + 1))
def test_whenever_the_update_comes_the_bytes_are_those_before(moment: int, in_time: float) -> None:
    state = payload()
    expected, found = whole(state), b""
    lent = Loan(state, {}, in_time)
    if moment < 0:  # before the writer has begun
        lent.end()
        scribble(live(state))
    for number, piece in enumerate(read(lent.take())):
        found += piece
        if number + 1 == max(moment, 1) and moment >= 0:
            lent.end()
            scribble(live(state))
    assert found == expected
    assert number + 1 == COUNT
    assert lent.rate is not None and lent.rate > 0
    if moment == COUNT:  # what is written in time is never copied
        assert sum(t.nbytes for t in lent.used.values()) == pytest.approx(
            max(0, len(expected) - in_time), abs=PIECE
        )
    lent.end()


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    moment=st.integers(0, 40),
    in_time=st.floats(0, 2000),
)
def test_any_sizes_any_moment(sizes: list[int], moment: int, in_time: float) -> None:
    files = {"f": {str(n): torch.arange(size) % 256 for n, size in enumerate(sizes)}}
    state = Payload({"f": {k: v.to(torch.uint8) for k, v in files["f"].items()}}, {})
    expected, found = whole(state), []
    lent = Loan(state, {}, in_time)
    for number, piece in enumerate(chain([b""], read(lent.take()))):
        found.append(piece)
        if number == moment:
            lent.end()
            for tensor in live(state):
                tensor.add_(1)
    assert b"".join(found) == expected


def test_beside_a_thread_that_writes() -> None:
    room: Any = {}
    for _ in range(100):
        state = payload()
        expected, found = whole(state), list[bytes]()
        lent = Loan(state, room, 800)

        def write(lent: Loan = lent, found: list[bytes] = found) -> None:
            found.extend(read(lent.take()))

        writer = threading.Thread(target=write)
        writer.start()
        lent.end()
        scribble(live(state))
        writer.join(600)
        assert b"".join(found) == expected
        room = lent.used


def test_memory_of_copies_is_used_again() -> None:
    first = Loan(payload(), {})
    first.end()
    assert len(first.used) == COUNT
    second = Loan(payload(), first.used)
    second.end()
    assert {k: v.data_ptr() for k, v in second.used.items()} == {
        k: v.data_ptr() for k, v in first.used.items()
    }


def test_a_copy_that_fails_is_the_writers_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("no room for a copy")

    lent = Loan(payload(), {})
    pieces = read(lent.take())
    next(pieces)
    monkeypatch.setattr(lent, "_copy", full)
    lent.end()  # raises nothing
    with pytest.raises(MemoryError, match="no room for a copy"):
        list(pieces)


def test_what_is_withheld_is_copied_before_the_update() -> None:
    state = payload()
    expected, entered, go = whole(state), threading.Event(), threading.Event()
    snapshot = Snapshot()
    take = snapshot.take

    def late(given: Payload) -> Payload:
        entered.set()
        assert go.wait(600)
        return take(given)

    snapshot.take = late  # type: ignore[method-assign]
    lent, taken = Withheld(state, snapshot), []
    writer = threading.Thread(target=lambda: taken.append(lent.take()))
    writer.start()
    assert entered.wait(600)
    threading.Thread(target=go.set).start()
    lent.end()
    scribble(live(state))
    writer.join(600)
    assert whole(taken[0]) == expected
