"""Dropout masks are functions of keys, layer and place, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surefoot.engine.random import example_keys
from surefoot.nn.dropout import Dropout, keyed_layers, set_keys


def layers(count=3, p=0.25):
    return nn.Sequential(*(Dropout(p) for _ in range(count))).train()


def masks(model, keys, shape=(16, 32)):
    """The mask of every layer: [layers, B, *shape] of 0 and 1."""
    set_keys(model, keys)
    x = torch.ones(len(keys), *shape)
    return torch.stack([layer(x) != 0 for layer in keyed_layers(model)])


def test_masks_do_not_depend_on_the_split_into_micro_batches():
    model, keys = layers(), example_keys(1, 7, 0, 12)
    whole = masks(model, keys)
    for size in (1, 3, 4, 6):
        pieces = [masks(model, example_keys(1, 7, start, size)) for start in range(0, 12, size)]
        assert torch.equal(torch.cat(pieces, 1), whole)


def test_masks_do_not_depend_on_other_draws_and_draw_nothing():
    model, keys = layers(), example_keys(1, 7, 0, 4)
    first = masks(model, keys)
    torch.rand(100)
    before = torch.get_rng_state()
    assert torch.equal(masks(model, keys), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shorter_example_has_the_beginning_of_the_mask_of_a_longer_one():
    model, keys = layers(1), example_keys(1, 7, 0, 4)
    long, short = masks(model, keys, (16, 32)), masks(model, keys, (9, 32))
    assert torch.equal(long[:, :, :9], short)


def test_examples_that_are_cut_drop_what_they_would_whole():
    model, x = layers(1), torch.ones(4, 16, 8)
    set_keys(model, example_keys(1, 7, 0, 4))
    whole, cut = model(x), model(x.reshape(8, 8, 8))
    assert torch.equal(cut.view_as(whole), whole) and not whole.all()
    with pytest.raises(RuntimeError, match="a key"):
        model(torch.ones(6, 8, 8))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_right_share_is_dropped_everywhere(p):
    kept = masks(layers(4, p), example_keys(3, 0, 0, 64), (64, 64)).double()
    spread = (p * (1 - p)) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 4 * spread / kept.numel() ** 0.5
    by_example = kept.mean((2, 3)) - (1 - p)
    assert by_example.abs().max() < 5 * spread / 64
    by_place = kept.mean((0, 1)) - (1 - p)
    assert by_place.abs().max() < 5 * spread / 16


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    model = layers(1, 0.2)
    set_keys(model, example_keys(0, 0, 0, 50))
    out = model(torch.ones(50, 1000))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert out.mean().item() == pytest.approx(1, abs=0.01)


def agreement(a, b):
    """Correlation of two sets of masks."""
    a, b = a.double().flatten(), b.double().flatten()
    return torch.corrcoef(torch.stack((a, b)))[0, 1].abs().item()


def test_layers_steps_examples_and_seeds_have_unrelated_masks():
    def at(seed, step):
        return masks(layers(), example_keys(seed, step, 0, 32), (64, 64))

    base = at(1, 7)
    bound = 5 / (32 * 64 * 64) ** 0.5
    assert agreement(base[0], base[1]) < bound
    assert agreement(base[0], base[2]) < bound
    assert agreement(base, at(1, 8)) < bound
    assert agreement(base, at(2, 7)) < bound
    assert agreement(base[:, :16], base[:, 16:]) < bound
    assert agreement(base[..., :-1], base[..., 1:]) < bound, "neighbouring places"
    assert agreement(base[:, :, :-1], base[:, :, 1:]) < bound, "neighbouring rows"


def test_neighbouring_keys_give_unrelated_masks():
    kept = masks(layers(1), torch.arange(256), (1000,))[0].double() - 0.75
    joint = kept @ kept.T / 1000 / (0.25 * 0.75)
    off = joint[~torch.eye(256, dtype=torch.bool)]
    assert off.abs().max() < 6.5 / 1000**0.5
    assert off.std().item() == pytest.approx(1000**-0.5, rel=0.1)


def test_gradients_pass_where_values_pass():
    model = layers(1, 0.5)
    set_keys(model, torch.arange(3))
    x = torch.ones(3, 20, requires_grad=True)
    out = model(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_evaluation_and_p_zero_return_the_input_itself():
    x = torch.ones(2, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert keyed_layers(nn.Sequential(Dropout(0.0))) == []


def test_a_batch_without_keys_is_refused():
    model = layers(1)
    with pytest.raises(RuntimeError, match="set_keys"):
        model(torch.ones(2, 3))
    set_keys(model, torch.arange(2))
    with pytest.raises(RuntimeError, match="set_keys"):
        model(torch.ones(3, 3))


def test_type_and_shape_are_kept_under_autocast():
    model = layers(1)
    set_keys(model, torch.arange(2))
    out = model(torch.ones(2, 3, 5, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and out.shape == (2, 3, 5)
