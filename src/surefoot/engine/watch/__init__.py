"""What watches a run while it trains: time, memory, the machine, whether the model lives.

Everything here is for the record and for people. It warns, and changes no number of a run.
"""
