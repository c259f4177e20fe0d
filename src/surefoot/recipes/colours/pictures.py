"""What came back and what was lost: pictures for the report, as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from surefoot.data.colours import hex_code, read
from surefoot.data.delta_e import delta_e, lab
from surefoot.recipes.colours.answers import Exam
from surefoot.track.picture import Bars, Picture, Points, Table

__all__ = ["marked", "pictures"]

Drawing = Callable[[nn.Module], Picture | None]

SHOWN = 24  # colours before and after
WORST = 24  # names with the most mistakes
MAPPED = 4000  # points of the map, at most


def pictures(exam: Exam) -> dict[str, Drawing]:
    """Return what is drawn at evaluations, by name."""
    return {
        "before and after": lambda model: _swatches(exam, model),
        "map of the bottleneck": lambda model: _map(exam, model),
        "wrong characters": lambda model: _wrong(exam, model),
        "names held by length": lambda model: _by_length(exam, model),
    }


def _swatches(exam: Exam, model: nn.Module) -> Picture | None:
    """Held-out colours, most different from each other in order of hue."""
    sheet = exam.sit(model)["held out"]
    if not sheet.rgb:
        return None
    head = ["name", "before"]
    wanted = exam.colours.rgb[sheet.rows]
    chosen = np.linspace(0, len(sheet.rows) - 1, min(SHOWN, len(sheet.rows))).astype(int)
    rows: list[list[Any]] = [
        [exam.colours.names[sheet.rows[i]], hex_code(wanted[i])] for i in chosen
    ]
    for way, told in (("rgb_to_rgb", "after"), ("names_to_rgb", "from its name")):
        if way in sheet.rgb:
            off = delta_e(sheet.rgb[way], wanted)
            head += [told, "ΔE2000"]
            for row, i in zip(rows, chosen):
                row += [hex_code(sheet.rgb[way][i]), round(float(off[i]), 2)]
    return Table(
        "Held-out colours, before and after", head, rows,
        "ΔE2000 is how different two colours look: 1 is just visible. "
        "The name of a held-out colour was never seen.",
    )  # fmt: skip


def _map(exam: Exam, model: Any) -> Picture:
    """Where the colours of the list lie in the bottleneck, each painted in itself."""
    rows = np.concatenate(list(exam.rows.values()))
    rows = rows[:: -(-len(rows) // MAPPED)]
    place = torch.from_numpy(rows).to(exam.tables.rgb.device)
    if exam.tables.vectors is not None:
        latent = model.encode(exam.tables.vectors[place])
    elif model.colours:
        latent = model.encode_rgb(exam.tables.rgb[place])
    else:
        assert exam.tables.grams is not None
        latent = model.encode_names(exam.tables.grams[place])
    x, y, told = _plane(latent.cpu().double().numpy(), exam.colours.rgb[rows])
    what = "names" if exam.tables.vectors is not None or not model.colours else "colours"
    return Points(
        "Map of the bottleneck", x.tolist(), y.tolist(),
        [hex_code(rgb) for rgb in exam.colours.rgb[rows]],
        [exam.colours.names[row] for row in rows.tolist()],
        f"Each of {len(rows):,} {what} where the encoder puts it. {told}",
    )  # fmt: skip


def _plane(
    latent: NDArray[np.float64], rgb: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Return two coordinates of points f64[n, D], and a sentence that says what they are."""
    width = latent.shape[1]
    if width == 1:
        return latent[:, 0], lab(rgb)[:, 0], "Upwards: how light it is, for the bottleneck has one number."  # fmt: skip
    if width == 2:
        return latent[:, 0], latent[:, 1], "The two axes are the two numbers of the bottleneck."
    centred = latent - latent.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T
    share = (spread[:2] ** 2).sum() / max(float((spread**2).sum()), 1e-12)
    return flat[:, 0], flat[:, 1], (
        f"The plane of greatest spread (principal components) shows {share:.0%} of {width} numbers."
    )  # fmt: skip


def marked(said: str, wanted: str) -> str:
    """Return `said` with what differs from `wanted` in brackets; a gap is [_].

    >>> marked("dusky teel", "dusty teal!")
    'dus[k]y te[e]l[_]'
    """
    found = ""
    for place in range(max(len(said), len(wanted))):
        mine, right = said[place : place + 1], wanted[place : place + 1]
        found += mine if mine == right else f"[{mine or '_'}]"
    return found.replace("][", "")


def _wrong(exam: Exam, model: nn.Module) -> Picture | None:
    """The names that came back with the most wrong characters."""
    rows: list[list[Any]] = []
    counts = []
    for part, sheet in exam.sit(model).items():
        said = sheet.said.get("names_to_names")
        if said is None:
            return None
        wanted = exam.wanted(sheet)
        wrong = (said != wanted).sum(1)
        counts.append(f"{int((wrong > 0).sum()):,} of {len(wrong):,} {part}")
        for i in np.argsort(-wrong, kind="stable")[: WORST // 2]:
            if wrong[i]:
                name = read(wanted[i])
                rows.append([part, name, marked(read(said[i]), name), int(wrong[i])])
    head = ("name is", "name", "came back as", "wrong places")
    note = f"Names with a mistake: {', '.join(counts)}. Brackets mark what is wrong."
    return Table("Wrong characters", head, rows, note)


def _by_length(exam: Exam, model: nn.Module) -> Picture | None:
    """How many of the training names come back without a mistake, by their length."""
    sheet = exam.sit(model)["trained"]
    if "names_to_names" not in sheet.said:
        return None
    wanted = exam.wanted(sheet)
    right = (sheet.said["names_to_names"] == wanted).all(1)
    length = np.minimum((wanted > 0).sum(1), 29) // 3
    groups = range(int(length.min()), int(length.max()) + 1)
    labels = [f"{3 * g}+" if g == 9 else f"{3 * g} to {3 * g + 2}" for g in groups]
    shares = [
        float(100 * right[length == g].mean()) if (length == g).any() else None for g in groups
    ]
    note = "Training names that come back letter for letter, by their number of characters."
    return Bars("Names held by length", labels, shares, "%", note)
