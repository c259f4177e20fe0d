"""The version, by itself, so that anything may read it without importing anything."""

__version__ = "0.1.0"
