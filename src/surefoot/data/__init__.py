"""Numbers in: what an example is, in which order it comes, and where real text comes from.

This room knows NumPy and files. It refuses to know models, devices and training.
"""
