"""Tokens out: how they are drawn, and the decoders that compute the next one.

May import: dataset and weights, and what is below them.
"""
