"""One training from start to end: torchrun, gangs of machines, and what launcher and ranks tell one another.

May import: dataset and weights, and what is below them.
"""
