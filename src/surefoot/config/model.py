"""Sizes and layouts of models, and how they save memory: plain values that the builders in `surefoot.nn` read."""

from __future__ import annotations

from typing import Literal

from surefoot.config.schema import Section, knob, largest_divisor

__all__ = ["EncoderDecoderConfig", "GPTConfig", "Memory"]


class GPTConfig(Section):
    """A decoder-only transformer.

    `modern` is the Qwen3 layout (RMSNorm, rotary positions, QK-norm, SwiGLU, tied embeddings),
    without `qk_norm` the Llama layout, and with `relu2` besides the Arcee layout; `gpt2` is the
    classic one (LayerNorm, learned positions, GELU). These are public architectures, so an export
    loses nothing. `private` names what no public architecture has.
    """

    layout: Literal["modern", "gpt2"] = knob("modern", "modern (Qwen3, Llama) or gpt2.")
    d_model: int = knob(128, "Width of the residual stream.", ge=1, le=65_536)
    num_layers: int = knob(4, "Blocks.", ge=1, le=4_096)
    num_heads: int = knob(4, "Attention heads.", ge=1)
    num_kv_heads: int | None = knob(
        None, "Key and value heads (grouped-query); default: all.", ge=1
    )
    d_ff: int | None = knob(
        None,
        "Width inside the feed-forward part; default: 8/3 (SwiGLU) or 4 x d_model.",
        ge=1,
    )
    context: int = knob(64, "Tokens that the model sees at once.", ge=1, le=4_000_000)
    dropout: float = knob(0.0, "Dropout of embeddings and residual branches.", ge=0, lt=1)
    qk_norm: bool = knob(True, "modern: RMSNorm of queries and keys (Qwen3); off: Llama.")
    feed_forward: Literal["swiglu", "relu2"] = knob(
        "swiglu", "modern: SwiGLU, or squared ReLU without a gate."
    )
    softcap: float | None = knob(
        None, "Bound logits by x tanh(logit / x); no public layout has it.", gt=0
    )
    value_embeddings: bool = knob(
        False, "Add a table of tokens to the values of every layer; no public layout has it."
    )
    zero_init: bool = knob(False, "Begin with zeros where a layer writes into the residual stream.")
    tie_embeddings: bool = knob(True, "Share the input embedding with the output head.")
    rope_theta: float = knob(10000.0, "modern: base of the rotary frequencies.", gt=0)
    norm_eps: float = knob(1e-5, "Added to the variance in norms.", gt=0)

    def conflicts(self) -> list[tuple[str, str]]:
        """Return broken rules between these fields as (field, explanation)."""
        found = []
        if self.d_model % self.num_heads:
            near = largest_divisor(self.d_model, self.num_heads)
            text = f"{self.num_heads} heads do not divide d_model {self.d_model}; {near} would"
            found.append(("num_heads", text))
        elif self.layout == "modern" and (self.d_model // self.num_heads) % 2:
            text = f"rotary positions need an even head width, not {self.d_model // self.num_heads}"
            found.append(("num_heads", text))
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            text = f"{self.num_kv_heads} does not divide num_heads {self.num_heads}"
            found.append(("num_kv_heads", text))
        if self.layout == "gpt2" and self.num_kv_heads not in (None, self.num_heads):
            found.append(("num_kv_heads", "the gpt2 layout has no grouped queries"))
        if self.layout == "gpt2" and self.feed_forward == "relu2":
            found.append(("feed_forward", "the gpt2 layout has GELU; --layout modern has relu2"))
        return found

    @property
    def private(self) -> list[str]:
        """Settings that no public architecture has, so that neither HF nor GGUF can say them."""
        given = [
            (self.softcap is not None, "softcap"),
            (self.value_embeddings, "value_embeddings"),
            (self.feed_forward == "relu2" and self.qk_norm, "relu2 together with qk_norm"),
        ]
        return [name for there, name in given if there]

    @property
    def ff_width(self) -> int:
        """Width inside the feed-forward part; with a gate rounded up to a multiple of 32."""
        if self.d_ff is not None:
            return self.d_ff
        if self.layout == "gpt2" or self.feed_forward == "relu2":
            return 4 * self.d_model
        return -(-8 * self.d_model // 3 // 32) * 32


class EncoderDecoderConfig(Section):
    """An encoder, an optional bottleneck of latents, and a decoder, of modern blocks."""

    d_model: int = knob(64, "Width of the residual stream.", ge=2)
    num_layers: int = knob(2, "Blocks of the encoder, and as many of the decoder.", ge=1)
    num_heads: int = knob(4, "Attention heads.", ge=1)
    d_ff: int | None = knob(
        None, "Width inside the feed-forward part; default: 8/3 x d_model, rounded up.", ge=1
    )
    num_latent: int = knob(4, "Latents between encoder and decoder (latent model).", ge=1, le=1024)
    latent_layers: int = knob(1, "Self-attention blocks over the latents (latent model).", ge=0)
    dropout: float = knob(0.0, "Dropout of embeddings and residual branches.", ge=0, lt=1)

    def conflicts(self) -> list[tuple[str, str]]:
        """Return broken rules between these fields as (field, explanation)."""
        return [("num_heads", text) for _, text in self.block().conflicts()]

    def block(self, context: int = 1) -> GPTConfig:
        """Return the configuration of the blocks, for sequences of up to `context` tokens."""
        return GPTConfig(
            d_model=self.d_model, num_layers=self.num_layers, num_heads=self.num_heads,
            d_ff=self.d_ff, dropout=self.dropout, context=context, tie_embeddings=False,
        )  # fmt: skip


class Memory(Section):
    """How memory is saved; the numbers stay the same, but for rounding."""

    checkpointing: bool = knob(False, "Compute the inside of a layer again for its gradient.")
