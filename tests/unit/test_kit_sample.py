"""Generation: the same tokens as a full forward pass, and draws that mean what they say."""

from __future__ import annotations

import pytest
import torch

from surefoot.config.model import GPTConfig
from surefoot.engine.kit.sample import choose, generate
from surefoot.errors import ConfigError
from surefoot.nn.gpt import GPT

VOCAB, CONTEXT = 23, 16


def model(**changes):
    sizes = {"d_model": 24, "num_layers": 2, "num_heads": 2, "context": CONTEXT}
    config = GPTConfig(**{**sizes, "tie_embeddings": False, **changes})
    gpt = GPT(config, VOCAB, seed=1)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
        for block in gpt.blocks:
            if block.attn.value_scale is not None:
                block.attn.value_scale.fill_(1.0)
    return gpt


def prompt(batch=1, length=3, seed=0):
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def written(gpt, tokens, count, **settings):
    return torch.stack(list(generate(gpt, tokens, count, **settings)), 1)


def by_full_forward(gpt, tokens, count):
    """Greedy, without a cache, with the documented window past the context limit."""
    known, start = tokens, max(0, tokens.size(1) - CONTEXT)
    for _ in range(count):
        if known.size(1) - start > CONTEXT:
            start = known.size(1) - (CONTEXT - CONTEXT // 4)
        with torch.no_grad():
            new = gpt(known[:, start:])[:, -1].argmax(-1, keepdim=True)
        known = torch.cat((known, new), 1)
    return known[:, tokens.size(1) :]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layout": "gpt2"},
        {"feed_forward": "relu2", "softcap": 5.0, "value_embeddings": True},
        {"num_kv_heads": 1},
        {"qk_norm": False, "d_model": 32, "num_heads": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 5, CONTEXT, CONTEXT + 9])
def test_greedy_is_the_full_forward_also_past_the_context(changes, length):
    gpt, tokens = model(**changes), prompt(3, length)
    found = written(gpt, tokens, 3 * CONTEXT, temperature=0.0)
    assert torch.equal(found, by_full_forward(gpt, tokens, 3 * CONTEXT))
    assert len(found.unique()) > 3, "a constant text would prove little"


def test_the_seed_decides():
    gpt, tokens = model(), prompt(2)
    first = written(gpt, tokens, 30, seed=5)
    assert torch.equal(first, written(gpt, tokens, 30, seed=5))
    assert not torch.equal(first, written(gpt, tokens, 30, seed=6))
    assert torch.equal(first[:, :10], written(gpt, tokens, 10, seed=5)), "a shorter text begins so"


def test_rows_are_what_they_would_be_alone():
    gpt, tokens = model(), prompt(3)
    together = written(gpt, tokens, 24, seed=[4, 9, 4])
    for row, seed in enumerate([4, 9, 4]):
        alone = written(gpt, tokens[row : row + 1], 24, seed=seed)
        assert torch.equal(together[row : row + 1], alone)
    same = written(gpt, tokens[:1].expand(2, -1), 24, seed=4)
    assert not torch.equal(same[0], same[1]), "rows of one seed are different texts"


def test_nothing_is_left_behind():
    gpt = model(dropout=0.5).train()
    before = torch.get_rng_state()
    texts = generate(gpt, prompt(), 20, seed=1)
    next(texts)
    assert gpt.training and torch.is_grad_enabled()
    rest = list(texts)
    assert torch.equal(torch.get_rng_state(), before)
    assert gpt.training and all(p.grad is None for p in gpt.parameters())
    assert torch.equal(torch.stack(rest, 1), written(gpt.eval(), prompt(), 20, seed=1)[:, 1:])


def test_autocast_changes_nothing():
    gpt = model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = written(gpt, prompt(), 20, seed=1)
    assert torch.equal(inside, written(gpt, prompt(), 20, seed=1))


def draws(count):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def shares(logits, **settings):
    """How often each token is chosen over evenly spread uniform numbers."""
    rows = torch.tensor(logits).expand(4000, -1)
    return torch.bincount(choose(rows, draws(4000), **settings), minlength=rows.size(1)) / 4000


def test_draws_follow_the_probabilities():
    p = torch.tensor([0.5, 0.2, 0.05, 0.25])
    assert torch.allclose(shares(p.log().tolist()), p, atol=1e-3)


def test_temperature_sharpens_and_flattens():
    p = torch.tensor([0.5, 0.2, 0.05, 0.25])
    for temperature in (0.5, 2.0):
        expected = p ** (1 / temperature)
        found = shares(p.log().tolist(), temperature=temperature)
        assert torch.allclose(found, expected / expected.sum(), atol=1e-3)
    assert shares(p.log().tolist(), temperature=0.0).tolist() == [1, 0, 0, 0]
    assert shares(p.log().tolist(), temperature=1e-3).tolist() == [1, 0, 0, 0]


def test_top_k_keeps_the_most_probable():
    p = torch.tensor([0.5, 0.2, 0.05, 0.25])
    assert shares(p.log().tolist(), top_k=1).tolist() == [1, 0, 0, 0]
    expected = torch.tensor([0.5, 0, 0, 0.25]) / 0.75
    assert torch.allclose(shares(p.log().tolist(), top_k=2), expected, atol=1e-3)
    for k in (4, 99):
        assert torch.allclose(shares(p.log().tolist(), top_k=k), p, atol=1e-3)
    tied = shares([1.0, 1.0, 1.0, 0.0], top_k=2)
    assert torch.allclose(tied, torch.tensor([1, 1, 1, 0]) / 3, atol=1e-3)


def test_top_p_keeps_the_fewest_that_reach_it():
    p = torch.tensor([0.5, 0.2, 0.05, 0.25])
    for top_p, kept in [
        (0.4, [0]),
        (0.6, [0, 3]),
        (0.74, [0, 3]),
        (0.9, [0, 1, 3]),
        (1.0, [0, 1, 2, 3]),
    ]:
        expected = torch.zeros(4)
        expected[kept] = p[kept] / p[kept].sum()
        assert torch.allclose(shares(p.log().tolist(), top_p=top_p), expected, atol=1e-3), top_p


def test_top_p_counts_after_top_k():
    p = torch.tensor([0.5, 0.2, 0.05, 0.25])
    expected = torch.tensor([1.0, 0, 0, 0])
    assert torch.equal(shares(p.log().tolist(), top_k=2, top_p=0.6), expected)


def test_min_p_keeps_what_is_near_the_first():
    p = torch.tensor([0.5, 0.2, 0.05, 0.25])
    for min_p, kept in [(0.0, [0, 1, 2, 3]), (0.2, [0, 1, 3]), (0.45, [0, 3]), (1.0, [0])]:
        expected = torch.zeros(4)
        expected[kept] = p[kept] / p[kept].sum()
        assert torch.allclose(shares(p.log().tolist(), min_p=min_p), expected, atol=1e-3), min_p


def test_a_penalty_is_the_public_one():
    from transformers import RepetitionPenaltyLogitsProcessor

    gpt, tokens = model(), prompt(2)
    found = written(gpt, tokens, CONTEXT - 3, temperature=0.0, repetition_penalty=1.7)
    judge, known = RepetitionPenaltyLogitsProcessor(1.7), tokens
    for _ in range(CONTEXT - 3):
        with torch.no_grad():
            logits = judge(known, gpt(known)[:, -1])
        known = torch.cat((known, logits.argmax(-1, keepdim=True)), 1)
    assert torch.equal(found, known[:, tokens.size(1) :])
    assert not torch.equal(found, written(gpt, tokens, CONTEXT - 3, temperature=0.0))


def test_the_ends_of_the_uniform_numbers_choose_possible_tokens():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert choose(logits, ends).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1.0}, "negative"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"count": -1}, "-1 tokens"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_impossible_wishes_are_refused_in_words(settings, words):
    wish = {"tokens": prompt(), "count": 3, **settings}
    with pytest.raises(ConfigError, match=words):
        list(generate(model(), wish.pop("tokens"), wish.pop("count"), **wish))


def test_no_tokens_are_no_tokens():
    assert list(generate(model(), prompt(), 0)) == []
