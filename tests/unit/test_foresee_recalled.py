"""What an operation gave is recalled just as torch would work it out again."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from surefoot import api, recipes
from surefoot.config import flags
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee import predict as module
from surefoot.engine.foresee.predict import Need, predict
from surefoot.engine.foresee.recalled import Recalling

PLAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "pairs": ("multiply", {}, "fp32"),
    "adapters": ("code", {"memory.checkpointing": False}, "bf16"),
    "4 bits in tiles": (
        "code", {"adapter.method": "qlora+", "model.context": 256, "memory.mlp_tile": 64}, "fp16",
    ),
    "4 bits, offload": (
        "code", {"adapter.method": "qlora", "memory.offload": True}, "bf16",
    ),
    "all weights": ("code", {"adapter.method": "full"}, "fp32"),
}  # fmt: skip


def play(recipe: str, settings: dict[str, Any], precision: str) -> Need:
    found = recipes.find(recipe)
    given, problems = flags.arguments(settings, found.config)
    config = api.settle(found, "tiny", [], given, problems).config
    card = 68 if recipe == "code" else None
    pins = Pins("cpu", precision=precision)
    need = predict(found, config, pins, micro=1, block=512, processors=card)
    return replace(need, history=[])  # what dies at once does so in any order


@pytest.mark.parametrize("case", PLAYS)
def test_a_play_is_that_of_torch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if PLAYS[case][0] == "code":
        pytest.importorskip("peft")
    if "4 bits" in case:
        pytest.importorskip("bitsandbytes")
    first, again = (play(*PLAYS[case]) for _ in range(2))
    monkeypatch.setattr(module, "Recalling", FakeTensorMode)
    assert first == again == play(*PLAYS[case])  # each operation
    assert len(first.passes) > 100


def same_form(a: Tensor, b: Tensor) -> bool:
    told = [(x.shape, x.stride(), x.storage_offset(), x.dtype, x.device) for x in (a, b)]
    keys = [torch._C._dispatch_keys(x) for x in (a, b)]
    return told[0] == told[1] and keys[0] == keys[1]


def test_views_share_what_they_look_at_and_products_do_not() -> None:
    with Recalling():
        for begin in (0, 2, 4):  # the same view elsewhere
            whole = torch.empty(6, 4)
            part = whole[begin:]
            assert part[:2].t().storage_offset() == 4 * begin
            assert part.untyped_storage()._cdata == whole.untyped_storage()._cdata
            assert (part + 1).untyped_storage()._cdata != whole.untyped_storage()._cdata
            assert part.mul_(2).untyped_storage()._cdata == whole.untyped_storage()._cdata
        for place in (3, 5):
            assert whole.as_strided((2,), (1,), place).storage_offset() == place


def test_numbers_of_other_types_and_altered_tensors_are_told_apart() -> None:
    with Recalling():
        x = torch.ones(3, dtype=torch.int64)
        for _ in range(2):
            assert (x + 1).dtype == torch.int64 and (x + 1.0).dtype == torch.float32
            assert (x * True).dtype == torch.int64
            turned = torch.empty(2, 5)
            turned.t_()
            assert turned.shape == (5, 2)
            assert torch.tensor(7).item() == 7  # which has contents
        torch.set_default_dtype(torch.float64)
        try:
            assert (x + 1.0).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_what_is_recalled_is_as_torch_makes_it() -> None:
    def made() -> list[Tensor]:
        x = torch.empty(2, 8, requires_grad=True)
        parts = x.split(3, 1)
        norm = torch.native_layer_norm(x, (8,), None, None, 1e-5)
        loss = torch.nn.functional.cross_entropy(x.bfloat16(), torch.zeros(2, dtype=torch.int64))
        loss.backward()
        return [
            *parts,
            *norm,
            loss,
            x.expand(4, 2, 8),
            x.flatten(),
            *([x.grad] if x.grad is not None else []),
        ]

    with FakeTensorMode():
        wanted = made()
    for _ in range(2):
        with Recalling() as mode:
            found = made()
        assert len(found) == len(wanted)
        assert all(same_form(a, b) for a, b in zip(found, wanted))
        assert all(type(x) is FakeTensor and x.fake_mode is mode for x in found)


def test_nothing_of_a_play_is_held() -> None:
    with Recalling() as mode:
        x = torch.empty(11, 13)
        gone = weakref.ref((x @ x.t() + 1).untyped_storage())
        was = weakref.ref(mode)
    del x, mode
    gc.collect()
    assert gone() is None and was() is None
