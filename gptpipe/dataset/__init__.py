"""Token datasets that exist: shards to a stream of tokens, the order of samples, batches.

May import: storage, model, tokenizer, config and what is below them.
"""
