"""Scores of a model, how sure they are, where they come from, and the page that shows them.

May import: launch, generation and what is below them.
"""
