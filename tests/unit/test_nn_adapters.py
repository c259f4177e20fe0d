"""Adapters on a pretrained model: what is trained, at which rate, and that 4 bits stay 4 bits."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from surefoot.engine import Learner, Loss
from surefoot.errors import ConfigError
from surefoot.nn import lean as leaning
from surefoot.nn.adapters import (
    Lora,
    Pretrained,
    Writer,
    adapt,
    adapter_groups,
    frozen_digest,
    guard_four_bit,
    linears,
    recompute_layers,
    still_dropout,
)
from surefoot.nn.dropout import keyed_layers, set_keys
from surefoot.nn.lean import (
    FewHeads,
    fuse_gelu,
    narrow_norms,
    offload_inputs,
    repeat_keys,
    takes_shared,
    tile_feed_forward,
)
from surefoot.nn.optimiser import AdamW
from surefoot.ops import CROSS_ENTROPY
from surefoot.schedule import Constant, Cosine, OneCycle, Schedule, WarmupStableDecay

pytest.importorskip("peft")


def llama(**options: Any) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=97, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(config)


def adapted(lora: Lora, **options: Any) -> Any:
    from surefoot.nn.adapters import Pretrained, adapt

    model = llama()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Pretrained(adapt(model, lora, 5), 32)
    found.entropy = CROSS_ENTROPY.pick("chunked", torch.device("cpu"))
    return found


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:].clone()


def gradients(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    for parameter in model.parameters():
        parameter.grad = None
    model(x, y).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def stir(model: Any) -> None:
    """Give the second factors values, so that the first ones have gradients."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


def test_fresh_adapters_change_nothing_and_go_off(rows: Any) -> None:
    model, plain = adapted(Lora(rank=4)), llama()
    x, y = rows
    wanted = plain(input_ids=x).logits
    assert torch.equal(model(x), wanted)
    stir(model)
    assert not torch.equal(model(x), wanted)
    with model.base():
        assert torch.equal(model(x), wanted)
    full = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
    assert torch.allclose(model(x, y), full, rtol=1e-5)


def test_only_adapters_are_trained_in_every_linear_layer_but_the_head(rows: Any) -> None:
    model = adapted(Lora(rank=4))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7 and all(".lora_" in n for n in trained)
    fewer = adapted(Lora(rank=4, targets=("q_proj", "v_proj"), freeze_a=True))
    trained = [n for n, p in fewer.named_parameters() if p.requires_grad]
    assert len(trained) == 4 and all(".lora_B." in n for n in trained)


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_generator_alone() -> None:
    llama()
    before = torch.get_rng_state()
    a = dict(adapted(Lora(rank=4)).named_parameters())
    b = dict(adapted(Lora(rank=4)).named_parameters())
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert torch.equal(before, torch.get_rng_state())


def test_groups_hold_every_trained_number_once_and_the_ratio() -> None:
    model = adapted(Lora(rank=4, dora=True))
    groups = adapter_groups(model, 1e-3, 16.0, 0.1)
    assert [(g["name"], g["peak"], g["weight_decay"]) for g in groups] == [
        ("B", 0.016, 0.1), ("vectors", 1e-3, 0.0), ("A", 1e-3, 0.1),
    ]  # fmt: skip
    told = [id(p) for g in groups for p in g["params"]]
    assert sorted(told) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(groups[1]["params"]) == 14  # the lengths that DoRA learns are not sped up


SCHEDULES = (
    OneCycle(1), OneCycle(3), OneCycle(40), Cosine(5, 30, 0.1), WarmupStableDecay(5, 10, 30),
    Constant(7),
)  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("ratio", [1.0, 5.0, 16.0])
def test_the_ratio_holds_at_every_step_of_every_schedule(schedule: Schedule, ratio: float) -> None:
    model = adapted(Lora(rank=2, dora=True))
    groups = AdamW(adapter_groups(model, 3e-4, ratio, 0.0))
    learner = Learner(model, lambda m, b: Loss(m(b)), [groups], schedule)
    by_name = {group["name"]: group for group in learner.groups}
    for step in range(45):  # also beyond the end, and after the rate was lowered
        learner.step, learner.lr_factor = step, 0.5 if step % 7 == 3 else 1.0
        learner.update()
        a, b, vectors = (by_name[name]["lr"] for name in ("A", "B", "vectors"))
        assert a == vectors == 3e-4 * schedule(step) * learner.lr_factor
        assert b == pytest.approx(ratio * a, rel=1e-14, abs=0.0)


def test_unknown_targets_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="no linear layer is called qproj") as caught:
        adapted(Lora(targets=("qproj",)))
    assert "q_proj, k_proj, v_proj, o_proj" in str(caught.value)


def test_a_rank_above_that_of_the_layers_is_refused() -> None:
    adapted(Lora(rank=64))  # the keys' layers have 32, which is no reason
    with pytest.raises(ConfigError, match="65 is more than 64"):
        adapted(Lora(rank=65))
    with pytest.raises(ConfigError, match="64 is more than 32"):
        adapted(Lora(rank=64, targets=("k_proj", "v_proj")))


def test_dropout_depends_on_keys_also_when_layers_are_computed_again(rows: Any) -> None:
    model = adapted(Lora(rank=4, dropout=0.3))
    stir(model)
    model.train()
    assert len(keyed_layers(model)) == 14
    set_keys(model, torch.tensor([1, 2]))
    plain = gradients(model, *rows)
    recompute_layers(model.causal)
    again = gradients(model, *rows)
    assert all(torch.equal(plain[n], again[n]) for n in plain)
    set_keys(model, torch.tensor([1, 3]))
    other = gradients(model, *rows)
    assert any(not torch.equal(plain[n], other[n]) for n in plain)


def test_writing_token_by_token_is_reading_at_once(rows: Any) -> None:
    model = adapted(Lora(rank=4)).eval()
    stir(model)
    x, _ = rows
    write = Writer(model)
    past = write.empty(2)
    first = write(x[:, :10], past)
    assert torch.allclose(first, model(x)[:, 9], atol=1e-5)
    assert torch.allclose(write(x[:, 10:11], past), model(x)[:, 10], atol=1e-5)


@pytest.mark.parametrize("newer", [False, True])
def test_what_was_read_goes_by_the_name_that_the_model_has_for_it(
    rows: Any, newer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = adapted(Lora(rank=4)).eval(), []

    def older_forward(input_ids: Any, past_key_values: Any = None, use_cache: Any = None) -> Any:
        seen.append(past_key_values)
        return (model.causal.get_input_embeddings()(input_ids),)

    def newer_forward(input_ids: Any, cache: Any = None, use_cache: Any = None) -> Any:
        return older_forward(input_ids, cache, use_cache)

    forward = newer_forward if newer else older_forward
    monkeypatch.setattr(model.causal.base_model, "forward", forward)
    write = Writer(model)
    past = write.empty(2)
    write(rows[0], past)
    assert seen == [past]


def test_tokens_that_a_tokenizer_does_not_have_are_never_written(rows: Any) -> None:
    model = adapted(Lora(rank=4)).eval()
    x, _ = rows
    every, few = (Writer(model, words) for words in (None, 60))
    found = few(x, few.empty(2))
    assert found.shape == (2, 60) and torch.equal(found, every(x, every.empty(2))[:, :60])


def test_the_digest_names_every_bit() -> None:
    one, two = llama(), llama()
    assert frozen_digest(one) == frozen_digest(two)
    with torch.no_grad():
        two.model.norm.weight[0] += 1e-6
    assert frozen_digest(one) != frozen_digest(two)


def four_bit(guarded: bool) -> tuple[Any, Any]:
    """Two layers in 4 bits, the second on top of the first."""
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layers = [
        bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        for _ in range(2)
    ]
    model = torch.nn.Sequential(*layers).to("cpu")
    if guarded:
        assert guard_four_bit(model) == 2
    return model, torch.randn(3, 64, generator=torch.Generator().manual_seed(4))


def by_input(model: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(x).square().sum().backward()
    assert x.grad is not None
    return x.grad


def look(model: Any, x: torch.Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()


def test_an_evaluation_leaves_four_bits_as_they_are() -> None:
    model, x = four_bit(guarded=True)
    digest, before = frozen_digest(model), by_input(model, x)
    look(model, x)
    assert frozen_digest(model) == digest
    assert torch.equal(by_input(model, x), before)


def test_without_the_guard_it_does_not() -> None:
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    if not modules.has_avx512bf16():
        pytest.skip("the fault needs a processor with bf16 instructions")
    model, x = four_bit(guarded=False)
    digest = frozen_digest(model)
    look(model, x)
    assert frozen_digest(model) != digest  # when this fails, the guard can go


def lean(model: Any, tile: int | None, offload: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recompute_layers(model.causal)
    if tile is not None:
        assert tile_feed_forward(model.causal, tile) == 2
    if offload:
        assert offload_inputs(model.causal) >= 2
    return model.train()


@pytest.mark.parametrize("mixed", [False, True])
def test_inputs_that_wait_on_the_host_leave_every_bit_of_the_gradient(
    rows: Any, mixed: bool
) -> None:
    found = []
    for offload in (False, True):
        model = lean(adapted(Lora(rank=4)), None, offload)
        stir(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append(gradients(model, *rows))
    assert len(found[0]) == 28 and found[0].keys() == found[1].keys()  # the first layer's, too
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_an_adapter_in_the_product_that_adds_it_rounds_no_more_than_peft(rows: Any) -> None:
    model = adapted(Lora(rank=4)).train()
    stir(model)
    exact = gradients(model, *rows)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(model, *rows)
        layers = [m for m in model.modules() if "forward" in vars(m)]
        for layer in layers:
            del layer.forward  # what peft itself does
        theirs = gradients(model, *rows)
    assert len(layers) == 14 and len(exact) == 28

    def off(found: dict[str, torch.Tensor]) -> float:
        return sum(float((found[n] - exact[n]).norm() / exact[n].norm()) for n in exact) / 28

    assert 0 < off(ours) < min(0.02, 1.1 * off(theirs))


@pytest.mark.parametrize("tile", [3, 5, 16])
def test_tiles_leave_the_gradient_but_for_rounding(rows: Any, tile: int) -> None:
    plain = adapted(Lora(rank=4)).train()
    stir(plain)
    wanted = gradients(plain, *rows)
    model = lean(adapted(Lora(rank=4)), tile, True)
    stir(model)
    found = gradients(model, *rows)
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-6 * value.norm(), name
    with torch.no_grad():
        assert torch.allclose(model(*rows), plain(*rows), rtol=1e-6)


SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4},  # linear layers of its own
    "Falcon": {**SMALL, "hidden_dropout": 0.2},  # layers that give a tuple
    "Mixtral": {  # a part with experts that takes no strides
        **SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "num_local_experts": 4,
        "max_position_embeddings": 64,
    },
    "RecurrentGemma": {  # logits with a cap, no part called mlp
        **SMALL, "intermediate_size": 64, "num_hidden_layers": 3, "logits_soft_cap": 0.1,
    },
    "Qwen3Next": {  # layers of two kinds, which remember in different ways
        **SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "num_hidden_layers": 4,
    },
}  # fmt: skip


def other(kind: str) -> Pretrained:
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(**OTHERS[kind])
    return Pretrained(transformers.AutoModelForCausalLM.from_config(config), 32)


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_layouts_have_their_own_gradient_and_write(rows: Any, kind: str) -> None:
    x, y = rows
    plain = other(kind)
    still_dropout(plain.causal)
    logits = plain.train().causal(input_ids=x).logits
    F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").backward()
    wanted = {n: p.grad.clone() for n, p in plain.named_parameters() if p.grad is not None}
    model = other(kind)
    still_dropout(model.causal)
    recompute_layers(model.causal)
    assert offload_inputs(model.causal) and bool(tile_feed_forward(model.causal, 5)) is (
        kind != "RecurrentGemma"
    )
    found = gradients(model.train(), x, y)
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 3e-6 * value.norm() + 1e-9, name
    model.eval()
    write = Writer(model)
    past = write.empty(2)
    write(x[:, :10], past)
    assert torch.allclose(write(x[:, 10:11], past), model(x)[:, 10], atol=1e-5)


def test_adapters_that_peft_does_not_put_on_a_base_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="peft cannot put such adapters") as caught:
        adapt(other("Mixtral").causal, Lora(4, dora=True), 0)
    assert "--dora" in str(caught.value)


@pytest.mark.parametrize("kind", ["GPT2", "Falcon"])
def test_dropout_that_a_model_brings_along_is_off(rows: Any, kind: str) -> None:
    model = other(kind).train()
    assert not torch.equal(model(rows[0]), model(rows[0]))
    still_dropout(model.causal)
    assert torch.equal(model(rows[0]), model.eval()(rows[0]))


def test_linear_layers_of_a_kind_of_their_own_are_targets(rows: Any) -> None:
    assert linears(other("GPT2").causal) == {"c_attn": 32, "c_proj": 32, "c_fc": 32}


@pytest.mark.parametrize(("heads", "keys"), [(6, 6), (6, 3), (8, 4)])
def test_attention_of_few_heads_at_a_time_is_attention(
    monkeypatch: pytest.MonkeyPatch, heads: int, keys: int
) -> None:
    monkeypatch.setattr("surefoot.nn.lean._HEAD_TOKENS", 64)
    draw = torch.Generator().manual_seed(2)
    given = [torch.randn(2, n, 32, 8, generator=draw).requires_grad_() for n in (heads, keys, keys)]
    found = []
    for mode in (nullcontext(), FewHeads()):
        with mode:
            out = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=keys < heads)
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for plain, grouped in zip(*found):
        assert torch.allclose(plain, grouped, rtol=1e-5, atol=1e-6)
    assert found[1][0].grad_fn is not None and "Grouped" in type(found[1][0].grad_fn).__name__


def test_norms_give_what_they_take_also_under_autocast() -> None:
    model = torch.nn.Sequential(torch.nn.LayerNorm(8).bfloat16(), torch.nn.LayerNorm(8))
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    wanted = model[0](x)
    assert narrow_norms(model) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model[0](x), wanted) and model[0](x).dtype == torch.bfloat16
        assert model[1](x.float()).dtype == torch.float32


def test_gelu_that_is_written_out_is_one_kernel_with_the_same_gradient() -> None:
    import transformers

    config = transformers.PhiConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        vocab_size=50, partial_rotary_factor=0.5,
    )  # fmt: skip
    model = transformers.PhiForCausalLM(config)
    x = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for fused in (0, 3):
        assert not fused or fuse_gelu(model) == fused
        model.zero_grad()
        model(input_ids=x).logits.square().mean().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-7), name
    assert fuse_gelu(model) == fuse_gelu(llama()) == 0


@pytest.mark.parametrize(
    ("card", "dtype", "taken"),
    [
        ((8, 6), torch.bfloat16, True),
        ((9, 0), torch.float32, False),
        ((7, 5), torch.float16, False),
    ],
)
def test_shared_keys_are_taken_by_flash_attention_alone(
    monkeypatch: pytest.MonkeyPatch, card: tuple[int, int], dtype: torch.dtype, taken: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: card)
    key: Any = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    assert takes_shared(key) is taken and not takes_shared(key, frugal=True)
    assert takes_shared(torch.ones(1))


@pytest.mark.parametrize("few", [False, True])
def test_where_keys_cannot_be_shared_each_head_has_its_own(
    monkeypatch: pytest.MonkeyPatch, rows: Any, few: bool
) -> None:
    repeat_keys()
    seen = []
    attend = F.scaled_dot_product_attention

    def look(query: torch.Tensor, key: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append((key.size(1), bool(more.get("enable_gqa"))))
        return attend(query, key, *rest, **more)

    model, found = adapted(Lora(rank=4)).train(), []
    stir(model)
    for shares in (True, False):
        monkeypatch.setattr(leaning, "takes_shared", lambda *_, shares=shares, **__: shares)
        with monkeypatch.context() as patch, FewHeads() if few else nullcontext():
            patch.setattr(F, "scaled_dot_product_attention", look) if not few else None
            found.append(gradients(model, *rows))
    assert seen == ([] if few else [(2, True)] * 2 + [(4, False)] * 2)
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_with_a_bias_has_the_loss_and_the_gradient_of_all_logits_at_once(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    import transformers

    config = transformers.PhiConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=50, partial_rotary_factor=0.5,
    )  # fmt: skip
    public = transformers.PhiForCausalLM(config)
    torch.nn.init.normal_(public.lm_head.bias)
    public.lm_head.requires_grad_(not frozen)
    model = Pretrained(public, 16).train()
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    x, y = tokens[:, :-1], tokens[:, 1:].clone()
    y[0, :3] = -100
    logits = public(input_ids=x).logits
    wanted = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
    wanted.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert ("inner.lm_head.bias" in plain) is not frozen
    monkeypatch.setattr("surefoot.nn.adapters._PIECE", 5)
    found = gradients(model, x, y)
    assert torch.allclose(model(x, y), wanted) and found.keys() == plain.keys()
    with torch.no_grad():
        assert torch.allclose(model(x, y), wanted)
    for name, value in plain.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name
