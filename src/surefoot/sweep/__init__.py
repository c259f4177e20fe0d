"""Many runs of one recipe: grids, draws and searches, by several processes, and what came of them.

Each trial is an ordinary run in the sweep's folder. What is to be tried is a plan, who tries what
is decided by locks that die with their process (or by a database), and the runs hold the results:
so a sweep can be killed like a run. Optuna is imported in `search` and `importance` only.
"""
