"""Floor 0: what a run is asked to do, as plain frozen values, and where each value came from.

    schema, model    every setting: type, range, default, meaning, identity or circumstance
    units            durations and sizes
    fields           a schema as a flat list of settings
    documents, place YAML, TOML and JSON files with the line and column of every value
    legacy, migrate  flat files and old names, and today's form of them
    names, suggest   what else settings are called, and did you mean
    flags            the command line, and keyword arguments
    resolve          defaults < preset < files < flags, checked once, all mistakes at once
    mistakes         the checker's complaints in plain words
    files            the text of a run's own config.yaml, and back
    identity         which settings change the numbers
    explain          what a setting means and where its value came from

Nothing is imported here, so that a verb pays only for the module it uses. This room refuses to
import torch or numpy and to touch a device.
"""

from __future__ import annotations

__all__: list[str] = []
