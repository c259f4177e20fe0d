"""What is computed again for the gradient gives the same bits, and is not kept before."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from surefoot.config.model import GPTConfig
from surefoot.engine.auto.ledger import Ledger
from surefoot.nn.again import again, hearing
from surefoot.nn.dropout import set_keys
from surefoot.nn.gpt import GPT
from surefoot.ops import slots

VOCAB, BORDER = 61, 7
SIZES = {"d_model": 48, "num_layers": 3, "num_heads": 4, "context": 140, "d_ff": 80}
MODELS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {  # sizes, ways of operations
    "qwen3": ({"dropout": 0.2}, {}),
    "gpt2": ({"dropout": 0.2, "layout": "gpt2"}, {}),
    "grouped, tiles": ({"num_kv_heads": 2}, {"attention": "tiles", "cross_entropy": "chunked"}),
    "matmul, recomputed": ({"qk_norm": False}, {"attention": "matmul", "swiglu": "recomputed"}),
    "squared relu": ({"feed_forward": "relu2", "dropout": 0.2}, {"keyed_dropout": "reference"}),
    "value embeddings": ({"value_embeddings": True, "softcap": 5.0}, {}),
    "documents": ({"dropout": 0.2, "border": BORDER}, {}),
}
COMPILED = ({"num_layers": 1, "dropout": 0.2}, {"norm": "compile"})


def model(checkpointing: bool, ways: dict[str, str] | None = None, **changes: Any) -> GPT:
    border = changes.pop("border", None)
    found = GPT(
        GPTConfig(**{**SIZES, **changes}), VOCAB, seed=3, border=border, checkpointing=checkpointing
    )
    for slot in slots((found,)):
        slot.put(slot.op.pick((ways or {}).get(slot.op.name, slot.op.standard), "cpu"))
    stream = torch.Generator().manual_seed(4)
    with torch.no_grad():  # norms and scales are not at 1 and 0, which would hide gradients
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream), alpha=0.1)
    return found


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def forward(found: GPT, precision: str, piece: int = 0, count: int = 2) -> Tensor:
    """The loss of a micro-batch, with keys of its own."""
    set_keys(found, torch.arange(count) + 9 * piece)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        x = tokens(count, 140, seed=2 * piece)
        loss: Tensor = found(x, tokens(count, 140, seed=2 * piece + 1))
        return loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_the_same_bits(name: str, precision: str) -> None:
    same_bits(*MODELS[name], precision)


@pytest.mark.slow  # compiling takes ten seconds
@pytest.mark.filterwarnings("ignore")  # torch's compiler has some
def test_a_compiled_operation_inside_is_called_again() -> None:
    same_bits(*COMPILED, "bf16")


def same_bits(changes: dict[str, Any], ways: dict[str, str], precision: str) -> None:
    sides = [model(checkpointing, ways, **changes) for checkpointing in (False, True)]
    losses: list[list[float]] = [[], []]
    for found, told in zip(sides, losses):
        for piece in range(2):  # gradients of micro-batches add up
            loss = forward(found, precision, piece)
            loss.backward()
            told.append(loss.item())
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]
    for (path, plain), repeated in zip(sides[0].named_parameters(), sides[1].parameters()):
        assert plain.grad is not None and plain.grad.any(), path
        assert torch.equal(plain.grad, repeated.grad), path


def kept(found: GPT, precision: str, count: int = 2) -> int:
    """Bytes that a forward pass keeps for the gradient, parameters aside, by storage."""
    owned, sizes = {p.data_ptr() for p in found.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda t: t), hearing(pack):
        alive = forward(found, precision, count=count)
    assert alive.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["modern", "gpt2"])
def test_of_a_layer_only_its_input_is_kept(layout: Any, precision: str) -> None:
    few, many = (
        [kept(model(on, num_layers=n, layout=layout), precision) for n in (2, 5)]
        for on in (True, False)
    )
    assert few[1] - few[0] == 3 * 2 * 140 * 48 * 4  # layers x windows x tokens x width, in fp32
    assert many[1] - many[0] > 6 * (few[1] - few[0])


def test_memory_at_the_peak_of_a_pass_grows_by_the_inputs_alone() -> None:
    def peak(checkpointing: bool, layers: int) -> int:
        found = model(checkpointing, num_layers=layers)
        for parameter in found.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with Ledger() as books:
            books.see(found.parameters())
            books.see(p.grad for p in found.parameters() if p.grad is not None)
            begun = books.mark()
            forward(found, "fp32").backward()
        weights = sum(2 * p.nbytes for p in found.parameters())
        return books.peak(begun)[0] - weights

    assert 0 < peak(True, 6) - peak(True, 3) < 0.15 * (peak(False, 6) - peak(False, 3))


def test_copies_of_weights_go_when_their_layer_is_done() -> None:
    def copies(checkpointing: bool) -> int:
        found = model(checkpointing)
        with Ledger() as books:
            books.see(found.parameters())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = found.hidden(tokens(2, 140))
                ended = books.mark()
        assert hidden.requires_grad
        wide = [p.shape for p in found.blocks.parameters() if p.dim() > 1]
        alive = books.peak(ended)[1]
        return sum(e.source == "aten._to_copy.default" and e.shape in wide for e in alive)

    assert (copies(False), copies(True)) == (3 * 5, 0)


def test_nothing_is_computed_again_where_no_gradient_is_wanted() -> None:
    found, heard = model(True), []
    found.eval()
    with torch.no_grad(), hearing(heard.append):
        first = found(tokens(1, 9))
    plain = model(False).eval()
    assert heard == [] and torch.equal(first, plain(tokens(1, 9)))


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, by: float) -> Tensor:
        self.calls += 1
        return (x * torch.rand_like(x)).exp() * by


def grad_of(run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    x = torch.linspace(0, 1, 9, requires_grad=True)
    out = run(Noise(), x, 2.0)
    drawn = torch.rand(3)
    (found,) = torch.autograd.grad(out.square().sum(), x)
    return found, torch.cat((drawn, torch.rand(3)))


def test_random_numbers_inside_are_the_same_again_and_those_outside_go_on() -> None:
    before = torch.get_rng_state()
    try:
        plain, repeated = grad_of(lambda inside, *args: inside(*args)), grad_of(again)
    finally:
        torch.set_rng_state(before)
    assert all(torch.equal(*pair) for pair in zip(plain, repeated))


def test_what_comes_after_the_last_kept_tensor_is_not_computed_again() -> None:
    calls: list[str] = []

    def inside(x: Tensor) -> Tensor:
        y = x.exp().exp()
        calls.append("reached")
        return y + 1

    x = torch.ones(3, requires_grad=True)
    again(inside, x).sum().backward()
    assert calls == ["reached"] and x.grad is not None and x.grad.all()


def test_a_gradient_can_be_taken_twice() -> None:
    x, inside = torch.ones(3, requires_grad=True), Noise()
    out = again(inside, x, 1.0).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert inside.calls == 2 and torch.equal(first, torch.autograd.grad(out, x)[0])
    assert inside.calls == 3


def test_what_does_something_else_the_second_time_is_refused() -> None:
    calls: list[int] = []

    def fickle(x: Tensor) -> Tensor:
        calls.append(1)
        return x.exp().exp() if len(calls) == 1 else x * 2

    out = again(fickle, torch.ones(3, requires_grad=True))
    with pytest.raises(RuntimeError, match="not what it was before"):
        out.sum().backward()


def test_what_was_computed_again_is_let_go_without_a_collector() -> None:
    heard: list[weakref.ref[Any]] = []
    found = model(True)
    gc.collect()
    gc.disable()
    try:
        with hearing(lambda t: heard.append(weakref.ref(t.untyped_storage()))):
            loss = forward(found, "bf16")
            loss.backward()
        del loss
        owned = {p.data_ptr() for p in found.parameters()} | {found.turn.data_ptr()}
        left = [s for ref in heard if (s := ref()) is not None and s.data_ptr() not in owned]
        assert len(heard) > 50 and left == []
    finally:
        gc.enable()


def test_torch_s_compiler_is_not_loaded_for_it() -> None:
    code = (
        "import sys, torch\n"
        "from surefoot.config.model import GPTConfig\n"
        "from surefoot.nn.gpt import GPT\n"
        "m = GPT(GPTConfig(softcap=3.0), 9, checkpointing=True)\n"
        "x = torch.zeros(1, 8, dtype=torch.int64)\n"
        "m(x, x).backward()\n"
        "print('torch._dynamo' in sys.modules, m.embed.weight.grad.any().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
