"""What every page has in common: one file with its styles and scripts inside, and safe data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from surefoot.track.figures import Figure
from surefoot.version import __version__

__all__ = ["asset", "figure_values", "pack", "render"]

ASSETS = Path(__file__).with_name("assets")


def render(template: str, **values: Any) -> str:
    """Return a page: the template with `values` and everything that draws curves."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        version=__version__,
        licence=asset("uplot.LICENSE.txt"),
        uplot_css=asset("uplot.css"),
        uplot_js=asset("uplot.js"),
        css=asset("report.css"),
        charts_js=asset("charts.js"),
        **values,
    )


def asset(name: str) -> str:
    """Return the text of a file in `assets/`."""
    return (ASSETS / name).read_text(encoding="utf-8")


def figure_values(figure: Figure) -> dict[str, Any]:
    """Return a figure as plain JSON, with four digits of each value."""
    made = asdict(figure)
    for curve in made["curves"]:
        for key in ("values", "smooth"):
            curve[key] = [None if v is None else float(f"{v:.4g}") for v in curve[key]]
    return made


def pack(document: Mapping[str, Any]) -> str:
    """Return JSON that is safe inside a script element, whatever a model wrote."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
