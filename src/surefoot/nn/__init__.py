"""Maths: models, their parts, and the mathematics of optimisers.

Nothing here opens a file, runs a loop or reads a configuration beyond the plain values it is
built from. Parameter names are the checkpoint format and stay stable.
"""

__all__: list[str] = []
