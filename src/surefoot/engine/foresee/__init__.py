"""What a run will take, before there is one: memory and time, here or on a card that is named.

Steps are played on tensors without contents, and what they need is held against what a place has.
"""
