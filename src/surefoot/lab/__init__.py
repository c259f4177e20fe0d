"""Look into training: two implementations side by side, a step replayed or taken apart, how fast a machine is.

Nothing that trains imports this package: it only looks at what `engine` does.
"""
