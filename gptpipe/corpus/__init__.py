"""Texts to token shards: what a corpus holds, which document goes where, and the dataset's id.

May import: dataset and weights, and what is below them.
"""
