"""Weights of any layout, found, read one tensor at a time, adapted and written; the checkpoint folder.

May import: storage, model, tokenizer, config and what is below them.
"""
