"""Weights out for other programs: a folder for transformers, a file for llama.cpp.

May import: train and evaluation, and what is below them.
"""
