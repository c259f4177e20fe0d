"""How different two colours look: CIEDE2000, of sRGB values under daylight (D65)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["delta_e", "delta_e_lab", "lab"]

Floats = NDArray[np.float64]

_XYZ = np.array(  # IEC 61966-2-1, linear sRGB -> CIE XYZ
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_FAR = 25.0**7


def lab(rgb: NDArray[Any]) -> Floats:
    """Return CIELAB [..., 3] of sRGB values [..., 3] from 0 to 1; white is exactly (100, 0, 0)."""
    rgb = np.clip(np.asarray(rgb, dtype=np.float64), 0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ (_XYZ / _XYZ.sum(1, keepdims=True)).T
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)


def delta_e(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Return CIEDE2000 [...] between sRGB colours [..., 3] from 0 to 1: about 1 is just visible.

    >>> round(float(delta_e(np.array([0, 0.282, 0.729]), np.array([0, 0.28, 0.73]))), 2)
    0.3
    """
    return delta_e_lab(lab(first), lab(second))


def delta_e_lab(first: Floats, second: Floats) -> Floats:
    """Return CIEDE2000 [...] between CIELAB colours [..., 3].

    After Sharma, Wu and Dalal, "The CIEDE2000 Color-Difference Formula: Implementation Notes,
    Supplementary Test Data, and Mathematical Observations" (2005); all weights are 1.
    """
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    grey = 1.5 - 0.5 * _saturation((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(grey * a1, b1), np.hypot(grey * a2, b2)
    h1 = np.degrees(np.arctan2(b1, grey * a1)) % 360
    h2 = np.degrees(np.arctan2(b2, grey * a2)) % 360
    colourless = c1 * c2 == 0
    turn = np.where(colourless, 0.0, (h2 - h1 + 180) % 360 - 180)
    middle = np.where(colourless, h1 + h2, _middle(h1, h2))
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    dark = (lightness - 50) ** 2
    s_l = 1 + 0.015 * dark / np.sqrt(20 + dark)
    s_h = 1 + 0.015 * chroma * _hue_weight(middle)
    by_l = (l2 - l1) / s_l
    by_c = (c2 - c1) / (1 + 0.045 * chroma)
    by_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / s_h
    blue = np.radians(60 * np.exp(-(((middle - 275) / 25) ** 2)))
    both = -2 * _saturation(chroma) * np.sin(blue) * by_c * by_h
    found: Floats = np.sqrt(np.maximum(by_l**2 + by_c**2 + by_h**2 + both, 0))
    return found


def _saturation(chroma: Floats) -> Floats:
    found: Floats = np.sqrt(chroma**7 / (chroma**7 + _FAR))
    return found


def _middle(h1: Floats, h2: Floats) -> Floats:
    """Return the hue half way between two, on the shorter arc, in degrees."""
    total = h1 + h2
    around = np.where(total < 360, total + 360, total - 360) / 2
    return np.where(np.abs(h1 - h2) <= 180, total / 2, around)


def _hue_weight(hue: Floats) -> Floats:
    found = np.ones_like(hue)
    for weight, times, turn in ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63)):
        found += weight * np.cos(np.radians(times * hue + turn))
    return found
