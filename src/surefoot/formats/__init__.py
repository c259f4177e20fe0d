"""A trained model in the formats of other programs, checked on the spot, and llama.cpp to write with.

Nothing that trains imports this package.
"""
