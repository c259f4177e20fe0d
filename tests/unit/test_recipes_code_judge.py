"""How a tuned model is judged: perplexities, shares, and how far each is known."""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from typing import Any

import pytest

from surefoot.data.bpe import train_bpe
from surefoot.data.compile_rate import Verdict, function_prompts
from surefoot.data.repository import CodeFile
from surefoot.recipes.code.judge import (
    Likelihood,
    ShareJudge,
    TextJudge,
    as_they_are,
    share_change,
)


class Model:
    """Knows whether its adapters are on."""

    tuned = True

    @contextmanager
    def base(self) -> Any:
        self.tuned = False
        yield
        self.tuned = True


def verdict(cut: bool) -> Verdict:
    return Verdict(as_is=cut, cut=cut, ended=cut, empty=False)


def test_tokens_count_and_not_rows() -> None:
    seen = Likelihood([30.0, 10.0], [10, 10]).perplexities()
    assert seen[""] == pytest.approx(math.exp(2.0))
    assert Likelihood([30.0, 1.0], [10, 1]).loss == pytest.approx(31 / 11)
    # Deviations of 10 each way: a standard error of sqrt(200 * 2 / 1) / 20 nats a token.
    assert seen["_high"] == pytest.approx(math.exp(2.0 + 1.959964))
    assert seen["_low"] == pytest.approx(math.exp(2.0 - 1.959964))


def test_of_one_row_there_is_no_interval() -> None:
    assert Likelihood([30.0], [10]).perplexities().keys() == {""}


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, hits = random.Random(1), 0
    for _ in range(400):
        counts = [draw.randint(20, 40) for _ in range(30)]
        rows = [count * draw.gauss(3.0, 0.5) for count in counts]
        ends = Likelihood(rows, counts).perplexities()
        hits += ends["_low"] < math.exp(3.0) < ends["_high"]
    assert 0.91 <= hits / 400 <= 0.98


def test_the_same_rows_tell_two_models_apart_sooner_than_their_own_intervals() -> None:
    before = Likelihood([30.0, 20.0, 10.0, 24.0], [10, 10, 10, 10])
    after = Likelihood([27.1, 17.0, 7.0, 21.1], [10, 10, 10, 10])
    judge = TextJudge(list, "val")
    told = judge.changes(before, after)
    assert told["val_ppl_change"] == pytest.approx(math.exp(-0.295) - 1)
    assert told["val_ppl_change_low"] < told["val_ppl_change"] < told["val_ppl_change_high"] < -0.2
    assert after.perplexities()["_high"] > before.perplexities()[""]


def test_a_change_of_shares_has_an_interval_also_where_nothing_changed() -> None:
    change, low, high = share_change([True] * 10, [True] * 10)
    assert change == 0 and low == -high < -0.1
    assert share_change([], []) == (0.0, -1.0, 1.0)
    # 12 of 50 for the better and 2 for the worse, by the formula of the paper.
    before = [False] * 12 + [True] * 2 + [True] * 36
    after = [True] * 12 + [False] * 2 + [True] * 36
    up, down = 13 / 52, 3 / 52
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 52)
    assert share_change(before, after) == pytest.approx((0.2, up - down - half, up - down + half))
    with pytest.raises(ValueError, match="shorter"):
        share_change([True, False], [True])


def test_what_the_files_have_is_judged_by_the_same_rule_once() -> None:
    asked: list[int] = []

    def judged(texts: Any) -> Any:
        asked.append(len(texts))
        return [verdict(text in ("own", "written")) for text in texts]

    own: Any = ["own", "own", "own", "longer"]
    judge = ShareJudge(lambda model: ["written"] * 8, judged, "compile", own=own)  # type: ignore[arg-type]
    told = [judge(Model()) for _ in range(2)]
    assert [row["compile_cut_files"] for row in told] == [0.75, 0.75] and asked.count(4) == 1
    assert "base_compile_cut_files" not in told[0]
    assert "compile_cut_files" not in ShareJudge(lambda model: ["own"], judged, "compile")(Model())  # type: ignore[arg-type]


def test_files_go_on_as_they_are_for_as_many_tokens() -> None:
    text = "def f(x):\n    y = x\n    return y\n"
    bpe = train_bpe([text * 9], 270)
    (prompt,) = function_prompts([CodeFile("a.py", "python", text)], 1)
    whole, part = (as_they_are([prompt], {"a.py": text}, bpe, n)[0] for n in (99, 3))
    assert (prompt.prefix + whole.text, whole.whole, part.whole) == (text, True, False)
    assert whole.text.startswith(part.text) and len(bpe.encode(part.text)) == 3


def test_the_base_is_looked_at_once_and_under_the_same_rule() -> None:
    asked: list[bool] = []

    def write(model: Any) -> Any:
        asked.append(model.tuned)
        return [model.tuned] * 8

    judge = ShareJudge(write, lambda texts: [verdict(bool(text)) for text in texts], "compile")
    model = Model()
    first, second = judge(model), judge(model)
    assert asked == [False, True, True] and first == second
    assert (first["base_compile_cut"], first["compile_cut"], first["compile_cut_change"]) == (
        0,
        1,
        1,
    )
    assert {"base_ended", "base_empty"} <= first.keys() and "base_compile_cut_low" not in first
    assert first["compile_cut_change_low"] > 0
