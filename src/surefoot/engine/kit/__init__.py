"""What recipes are built with: scores, curricula, writing with a model and answering questions.

Recipes take it from `surefoot.engine`. Nothing that begins a run or plays it needs it.
"""
