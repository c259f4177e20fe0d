"""The GPT is exactly the public architectures: same weights, same logits."""

from __future__ import annotations

import warnings

import pytest
import torch

from surefoot.config.model import GPTConfig
from surefoot.nn.gpt import GPT
from surefoot.ops import slots

VOCAB = 61


def small(**changes):
    sizes = {"d_model": 48, "num_layers": 2, "num_heads": 4, "context": 24, "d_ff": 80}
    return GPTConfig(**{**sizes, **changes})


def awake(config, seed=3):
    """A model whose every parameter matters: norms and biases are not at 1 and 0."""
    model = GPT(config, VOCAB, seed=seed)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream), alpha=0.1)
    return model


def tokens(*shape, vocab=VOCAB, seed=0):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers")


def as_llama(model):
    """Rename our parameters to those of Llama and Qwen3."""
    found = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
    }
    found["lm_head.weight"] = model.head.weight
    for i, block in enumerate(model.blocks):
        here = f"model.layers.{i}"
        q, k, v = block.attn.qkv.weight.split(block.attn.stacked[1])
        found |= {
            f"{here}.self_attn.q_proj.weight": q,
            f"{here}.self_attn.k_proj.weight": k,
            f"{here}.self_attn.v_proj.weight": v,
            f"{here}.self_attn.o_proj.weight": block.attn.out.weight,
            f"{here}.mlp.gate_proj.weight": block.mlp.gate.weight,
            f"{here}.mlp.up_proj.weight": block.mlp.up.weight,
            f"{here}.mlp.down_proj.weight": block.mlp.down.weight,
            f"{here}.input_layernorm.weight": block.norm1.weight,
            f"{here}.post_attention_layernorm.weight": block.norm2.weight,
        }
        if block.attn.q_norm is not None:
            found[f"{here}.self_attn.q_norm.weight"] = block.attn.q_norm.weight
            found[f"{here}.self_attn.k_norm.weight"] = block.attn.k_norm.weight
    return found


def as_gpt2(model):
    """Rename our parameters to those of GPT-2, whose matrices are stored transposed."""
    found = {
        "transformer.wte.weight": model.embed.weight,
        "transformer.wpe.weight": model.positions.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.blocks):
        for ours, theirs in (("attn.qkv", "attn.c_attn"), ("attn.out", "attn.c_proj"),
                             ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):  # fmt: skip
            layer = block.get_submodule(ours)
            found[f"transformer.h.{i}.{theirs}.weight"] = layer.weight.T
            found[f"transformer.h.{i}.{theirs}.bias"] = layer.bias
        for ours, theirs in (("norm1", "ln_1"), ("norm2", "ln_2")):
            norm = block.get_submodule(ours)
            found[f"transformer.h.{i}.{theirs}.weight"] = norm.weight
            found[f"transformer.h.{i}.{theirs}.bias"] = norm.bias
    return found


def public_twin(transformers, config):
    shared = {"vocab_size": VOCAB, "tie_word_embeddings": config.tie_embeddings}
    if config.layout == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=config.d_model, n_layer=config.num_layers, n_head=config.num_heads,
                n_positions=config.context, n_inner=config.ff_width, activation_function="gelu",
                layer_norm_epsilon=config.norm_eps, **shared,
            )
        )  # fmt: skip
    kind = "Qwen3" if config.qk_norm else "Llama"
    extra = {"head_dim": config.d_model // config.num_heads}
    settings = getattr(transformers, f"{kind}Config")(
        hidden_size=config.d_model, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads or config.num_heads,
        intermediate_size=config.ff_width, max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        **extra, **shared,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "gpt2"},
        {"layout": "gpt2", "tie_embeddings": False},
        {},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "tie_embeddings": False, "rope_theta": 500.0},
        {"qk_norm": False},
        {"qk_norm": False, "num_kv_heads": 2, "tie_embeddings": False},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()) or "qwen3",
)
def test_logits_are_those_of_the_public_architecture(transformers, changes):
    config = small(**changes)
    ours = awake(config)
    theirs = public_twin(transformers, config).eval()
    renamed = as_gpt2(ours) if config.layout == "gpt2" else as_llama(ours)
    with torch.no_grad():
        known = dict(theirs.named_parameters(remove_duplicate=False))
        assert set(known) == set(renamed), "every parameter has exactly one counterpart"
        for name, value in renamed.items():
            known[name].copy_(value)
        x = tokens(3, config.context)
        expected, found = theirs(x).logits, ours(x)
    assert expected.std() > 0.3, "the comparison would be empty on flat logits"
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("layout", ["modern", "gpt2"])
def test_names_are_the_checkpoint_format(layout):
    names = set(dict(GPT(small(layout=layout, num_layers=1), VOCAB).named_parameters()))
    matrices = {f"blocks.0.{n}.weight" for n in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")}
    norms = {"blocks.0.norm1.weight", "blocks.0.norm2.weight", "norm.weight"}
    assert matrices | norms | {"embed.weight"} <= names
    rest = names - matrices - norms - {"embed.weight"}
    if layout == "modern":
        extra = ("attn.q_norm", "attn.k_norm", "mlp.gate")
        assert rest == {f"blocks.0.{n}.weight" for n in extra}
    else:
        biased = {n.replace("weight", "bias") for n in matrices | norms}
        assert rest == biased | {"positions.weight"}


def test_nothing_but_parameters_is_saved():
    model = GPT(small(), VOCAB)
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters(remove_duplicate=False)}


def test_tied_embeddings_share_one_tensor_counted_once():
    tied, untied = GPT(small(), VOCAB), GPT(small(tie_embeddings=False), VOCAB)
    assert tied.head.weight is tied.embed.weight
    assert "head.weight" not in dict(tied.named_parameters())
    assert untied.num_parameters - tied.num_parameters == VOCAB * 48


def test_values_depend_on_the_seed_and_the_name_alone():
    before = torch.get_rng_state()
    one, again = GPT(small(), VOCAB, seed=5), GPT(small(num_layers=3), VOCAB, seed=5)
    other = GPT(small(), VOCAB, seed=6)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not ours"
    deeper = dict(again.named_parameters())
    for name, value in one.named_parameters():
        assert torch.equal(value, deeper[name]) or name.endswith(("out.weight", "down.weight")), (
            name
        )
    assert not torch.equal(one.embed.weight, other.embed.weight)
    a, b = one.blocks[0].attn.qkv.weight, one.blocks[1].attn.qkv.weight
    assert not torch.equal(a, b)


def test_a_token_never_sees_what_follows():
    for layout in ("modern", "gpt2"):
        model = awake(small(layout=layout))
        x = tokens(1, 20)
        y = x.clone()
        y[0, 12:] = (y[0, 12:] + 1) % VOCAB
        with torch.no_grad():
            a, b = model(x), model(y)
        assert torch.allclose(a[0, :12], b[0, :12], atol=1e-6)
        assert not torch.allclose(a[0, 12], b[0, 12], atol=1e-2)


def test_loss_is_a_sum_in_nats_that_ignores_masked_targets():
    model, x, y = awake(small()), tokens(2, 10), tokens(2, 10, seed=1)
    y[0, 3:6] = -100
    with torch.no_grad():
        logits, found = model(x), model(x, y)
    logs = logits.double().log_softmax(-1)
    counted = y != -100
    expected = -logs.gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)[counted].sum()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_bounded_loss_is_that_of_bounded_logits_and_so_is_its_gradient():
    from surefoot.nn import gpt

    model, x, y = awake(small(softcap=3.0)), tokens(2, 10), tokens(2, 10, seed=1)
    y[0, 3:6] = -100
    plain = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
    assert model(x).abs().max() < 3.0
    (expected,) = torch.autograd.grad(plain, model.head.weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt, "_AT_ONCE", 7)
        (found,) = torch.autograd.grad(model(x, y), model.head.weight)
        assert model(x, y).item() == pytest.approx(plain.item(), rel=1e-6)
    assert torch.allclose(found, expected, atol=1e-5)


def test_with_a_border_every_document_is_read_as_if_alone():
    config, border = small(), 0
    model = awake(config)
    model.border = border
    first, second = tokens(1, 6, seed=1).clamp(min=1), tokens(1, 8, seed=2).clamp(min=1)
    second[0, 0] = border
    together = model(torch.cat((first, second), 1))
    assert torch.allclose(together[:, :6], model(first), atol=1e-5)
    assert torch.allclose(together[:, 6:], model(second), atol=1e-5)
    model.border = None
    assert not torch.allclose(model(torch.cat((first, second), 1)), together, atol=1e-2)


def test_only_a_model_that_keeps_documents_apart_chooses_a_way_for_it():
    names = [{s.op.name for s in slots((GPT(small(), VOCAB, border=b),))} for b in (None, 0)]
    assert names[0] - names[1] == {"attention"} and names[1] - names[0] == {"within"}
    model = awake(small())
    apart = GPT(small(), VOCAB, border=0)
    apart.load_state_dict(model.state_dict())
    x = tokens(2, 9, seed=3)
    x[:, 4] = 0
    found = []
    for way in ("reference", "sdpa"):
        for slot in slots((apart,)):
            if slot.op.name == "within":
                slot.put(slot.op.pick(way, "cpu"))
        found.append(apart(x))
    assert torch.allclose(*found, atol=1e-5) and not torch.allclose(found[0], model(x), atol=1e-2)


def test_zeros_where_a_layer_writes_leave_the_embedding():
    model, x = GPT(small(zero_init=True), VOCAB), tokens(1, 5)
    assert torch.equal(model.hidden(x), model.norm(model.embed(x)))


def test_the_loss_of_a_fresh_model_is_that_of_a_uniform_guess():
    for layout in ("modern", "gpt2"):
        model = GPT(small(layout=layout), VOCAB)
        x = tokens(4, 24)
        mean = model(x, tokens(4, 24, seed=1)).item() / x.numel()
        assert mean == pytest.approx(torch.tensor(float(VOCAB)).log().item(), abs=0.1)


def test_work_is_counted_for_the_matrix_products_that_are_done():
    from torch.utils.flop_counter import FlopCounterMode

    config = small(layout="gpt2")
    model = GPT(config, VOCAB)
    for block in model.blocks:
        block.attn.attend = _full_attention
    x = tokens(2, config.context)
    with FlopCounterMode(display=False) as counter:
        model(x, x).backward()
    attention = 6 * config.num_layers * config.d_model * config.context  # counted half by us
    assert counter.get_total_flops() / x.numel() == model.flops_per_token() + attention


def _full_attention(q, k, v, causal):
    return (q @ k.mT).softmax(-1) @ v
