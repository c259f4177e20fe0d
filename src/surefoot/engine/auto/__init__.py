"""Every `auto` is decided before step 0: by rule, by real passes, or by what this machine was seen to reach.

Nothing here begins a run: `run` and `create` ask, and so does who foresees one.
"""
