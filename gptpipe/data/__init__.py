"""Corpora → Parquet token shards → batches.

`sources` lists the files of a corpus and `documents` reads them; `plan` decides which shard holds what and so
the dataset's id; `shards` writes one shard; `build` makes the whole dataset; `dataset` opens one; `tokens`
decodes its shards into a local cache; `order` defines the sequence of samples; `loader` turns it into batches.
"""
