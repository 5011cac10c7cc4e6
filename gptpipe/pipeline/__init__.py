"""The whole pipeline: what its later stages need, asked for before the first.

May import: tracking and export, and what is below them.
"""
