"""The searching of a sweep, by Optuna: what is searched, the study that remembers it, what it says.

May import: storage, dataset's permutation, config and below. It trains nothing: `gptpipe.pipeline.sweep` does.
"""
