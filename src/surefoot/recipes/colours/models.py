"""Autoencoders over one bottleneck, for colours, for names, and for both.

Shapes: B examples, D numbers of the bottleneck, K pieces of a name, T places, V symbols.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.data.colours import ALPHABET, PLACES
from surefoot.nn.init import Embedding, Linear, normal_

__all__ = ["ColourModel", "Seen", "VectorModel", "layers"]

V = len(ALPHABET) + 1


class Seen(NamedTuple):
    """What came out: colours f32[B, 3] and logits of symbols f32[B, T, V], by what went in."""

    rgb_to_rgb: Tensor | None = None
    rgb_to_names: Tensor | None = None
    names_to_rgb: Tensor | None = None
    names_to_names: Tensor | None = None


def layers(*widths: int, slope: float | None = None) -> nn.Sequential:
    """Return linear layers with SiLU, or with leaky ReLU of a `slope`, between them."""
    found: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        found += [Linear(before, after), nn.SiLU() if slope is None else nn.LeakyReLU(slope)]
    return nn.Sequential(*found[:-1])


def start(model: nn.Module, seed: int, waves: float = 1.0) -> None:
    """Fill all parameters: matrices from N(0, 1/inputs), those of waves from N(0, waves²), else 0."""
    for name, parameter in model.named_parameters():
        if "waves" in name:
            normal_(parameter, waves, seed, name)
        elif "grams" in name:
            normal_(parameter, 1.0, seed, name)
        elif parameter.dim() > 1 and name != "places":
            normal_(parameter, parameter.size(1) ** -0.5, seed, name)
        else:
            nn.init.zeros_(parameter)


class ColourModel(nn.Module):
    """Colours, names, or either, through one bottleneck.

    Colours go through two hidden layers on each side. A name goes in as the mean of its pieces and
    comes out place by place at once; between lie sines of the bottleneck, without which points as
    near as two shades could hardly be given different names (Tancik et al., "Fourier Features Let
    Networks Learn High Frequency Functions in Low Dimensional Domains", 2020).
    """

    def __init__(self, size: Any, seed: int = 0) -> None:
        super().__init__()
        self.colours, self.names = size.reads in ("rgb", "both"), size.reads in ("names", "both")
        narrow, side = size.bottleneck, size.rgb_hidden
        if self.colours:
            self.rgb_encoder = layers(3, side, side, narrow)
            self.rgb_decoder = layers(narrow, side, side, 3)
        if self.names:
            wide = size.name_hidden
            self.grams = Embedding(size.gram_kinds, size.gram_width)
            self.name_encoder = layers(size.gram_width, wide, narrow)
            self.waves = Linear(narrow, size.waves, bias=False)
            self.name_decoder = layers(2 * size.waves, wide, wide, PLACES * size.symbol_width)
            self.head = Linear(size.symbol_width, V, bias=False)
            self.places = nn.Parameter(torch.zeros(PLACES, V))
        start(self, seed, size.wave_scale)

    def encode_rgb(self, rgb: Tensor) -> Tensor:
        """Return the bottleneck f32[B, D] of colours f32[B, 3]."""
        found: Tensor = self.rgb_encoder(rgb - 0.5)
        return found

    def encode_names(self, grams: Tensor) -> Tensor:
        """Return the bottleneck f32[B, D] of the pieces of names i32[B, K], 0 filling up."""
        there = (grams != 0).sum(1, keepdim=True).clamp(min=1)
        total = F.embedding_bag(grams, self.grams.weight, mode="sum", padding_idx=0)
        found: Tensor = self.name_encoder(total / there.sqrt())
        return found

    def decode_rgb(self, latent: Tensor) -> Tensor:
        """Return colours f32[B, 3] of a bottleneck, not yet cut to 0 to 1."""
        found: Tensor = self.rgb_decoder(latent)
        return found + 0.5

    def decode_names(self, latent: Tensor) -> Tensor:
        """Return logits of symbols f32[B, T, V] of a bottleneck."""
        angles = self.waves(latent)
        places = self.name_decoder(torch.cat((angles.sin(), angles.cos()), -1))
        found: Tensor = self.head(places.unflatten(-1, (PLACES, -1)))
        return found + self.places

    def forward(self, rgb: Tensor | None = None, grams: Tensor | None = None) -> Seen:
        """Return all that can come out of what is given and what the model has."""
        found: dict[str, Tensor] = {}
        if rgb is not None and self.colours:
            found |= self._decode("rgb", self.encode_rgb(rgb))
        if grams is not None and self.names:
            found |= self._decode("names", self.encode_names(grams))
        return Seen(**found)

    def _decode(self, side: str, latent: Tensor) -> dict[str, Tensor]:
        found = {f"{side}_to_rgb": self.decode_rgb(latent)} if self.colours else {}
        if self.names:
            found[f"{side}_to_names"] = self.decode_names(latent)
        return found


class VectorModel(nn.Module):
    """Vectors f32[B, W] through a bottleneck, with leaky ReLU of slope 0.01 wherever there is one.

    Without a hidden layer it is one matrix, the bottleneck, and one matrix.
    """

    def __init__(self, width: int, bottleneck: int, hidden: int = 0, seed: int = 0) -> None:
        super().__init__()
        between: Sequence[int] = (hidden,) if hidden else ()
        self.encoder = layers(width, *between, bottleneck, slope=0.01)
        self.squash = nn.LeakyReLU(0.01)
        self.decoder = layers(bottleneck, *between, width, slope=0.01)
        start(self, seed)

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the bottleneck f32[B, D]."""
        found: Tensor = self.squash(self.encoder(vectors))
        return found

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors f32[B, W] as they come back."""
        found: Tensor = self.decoder(self.encode(vectors))
        return found
