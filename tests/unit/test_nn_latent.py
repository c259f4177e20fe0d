"""The three models have one interface, start from their seed alone, and mind their bottleneck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from surefoot.config.model import EncoderDecoderConfig
from surefoot.engine.kit.answers import free_running
from surefoot.nn.latent import DecoderOnly, LatentTransformer, SimpleTransformer, dimensions
from surefoot.ops import ATTENTION, slots

KINDS = [SimpleTransformer, LatentTransformer, DecoderOnly]
SIZES = EncoderDecoderConfig(
    d_model=16, num_layers=3, num_heads=2, d_ff=24, num_latent=5, latent_layers=2
)
S, T, V = 5, 7, 13


def make(kind: type, **changes: object) -> torch.nn.Module:
    model = kind(SIZES.model_copy(update=changes), V, S, T, seed=1).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(8)  # so that differences show
    return model


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(V, (6, n), generator=generator) for n in (S, T))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_is_as_all_at_once(kind: type) -> None:
    model, (question, inputs) = make(kind), examples()
    with torch.no_grad():
        at_once = model(question, inputs)
        answering = model.begin(question)
        followed = torch.stack([model.follow(inputs[:, t], answering) for t in range(T)], 1)
    assert torch.allclose(at_once, followed, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_so_far_is_all_that_is_seen_of_it(kind: type) -> None:
    model, (question, inputs) = make(kind), examples()
    other = inputs.clone()
    other[:, 4:] = (other[:, 4:] + 1) % V
    with torch.no_grad():
        one, two = model(question, inputs), model(question, other)
    assert torch.allclose(one[:, :4], two[:, :4], atol=1e-5)
    assert not torch.allclose(one[:, 4:], two[:, 4:], atol=1e-2)


def put(model: Any, attend: Any) -> None:
    for slot in slots([model]):
        if slot.op is ATTENTION:
            slot.put(attend)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_attention_gives_the_same(kind: type) -> None:
    model, (question, inputs) = make(kind), examples()
    found = []
    for way in (w for w in ATTENTION.available("cpu") if w != "compile"):
        put(model, ATTENTION.pick(way, "cpu"))
        model.zero_grad()
        logits = model(question, inputs)
        logits.square().sum().backward()
        found.append((logits.detach(), [p.grad.clone() for p in model.parameters()]))
    for logits, gradients in found[1:]:
        assert torch.allclose(logits, found[0][0], rtol=1e-3, atol=1e-4)
        for mine, reference in zip(gradients, found[0][1], strict=True):
            assert torch.allclose(mine, reference, rtol=1e-2, atol=1e-3 * reference.abs().max())


def test_the_decoder_sees_the_latents_only() -> None:
    model, (question, inputs) = make(LatentTransformer), examples()
    assert model.memory(question).shape == (6, 5, 16)
    assert model.attended(question, inputs).shape == (3, 6, 2, T, 5)
    assert torch.allclose(model.attended(question, inputs).sum(-1), torch.ones(()))
    assert make(SimpleTransformer).memory(question).shape == (6, S, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_reveal_the_sizes(kind: type) -> None:
    shapes = {name: tuple(t.shape) for name, t in make(kind).state_dict().items()}
    found = dimensions(shapes)
    assert found == {name: getattr(SIZES, name) for name in found}
    assert ("num_latent" in found) == (kind is LatentTransformer)
    with pytest.raises(KeyError):
        dimensions({"wte.weight": (3, 4)})


@pytest.mark.parametrize("kind", KINDS)
def test_work_is_counted_for_the_matrix_products_that_are_done(kind: type) -> None:
    model, (question, inputs) = make(kind), examples()
    put(model, ATTENTION.pick("reference", "cpu"))
    with FlopCounterMode(display=False) as counter:
        model(question, inputs).sum().backward()
    total = counter.get_total_flops() / 6
    assert model.flops() < total < 1.2 * model.flops(), "attention itself is left out"


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_a_function_of_the_seed_alone(kind: type) -> None:
    torch.manual_seed(1)
    one = kind(SIZES, V, S, T, seed=3).state_dict()
    torch.manual_seed(2)
    two, three = (kind(SIZES, V, S, T, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one[next(iter(one))], three[next(iter(one))])


def test_an_answer_ends_at_its_end_and_its_probability_too() -> None:
    class Scripted:
        """Says 4, 12, 9 to the first question and 4, 5, 6 to the second, each with p = 3/4."""

        def begin(self, question: torch.Tensor) -> list[int]:
            return []

        def follow(self, token: torch.Tensor, answering: list[int]) -> torch.Tensor:
            assert answering or token.tolist() == [11, 11]
            answering.append(0)
            said = torch.tensor([[4, 4], [12, 5], [9, 6]][len(answering) - 1])
            rest = torch.full((2, V), 0.25 / (V - 1))
            return rest.scatter(1, said.unsqueeze(1), 0.75).log()

    said, sure = free_running(Scripted(), torch.zeros(2, S), 3, start=11, end=12)
    assert said.tolist() == [[4, 12, 12], [4, 5, 6]]
    assert sure.tolist() == pytest.approx([0.75**2, 0.75**3])
