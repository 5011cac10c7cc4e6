"""Which documents stand at given places of a stream."""

from __future__ import annotations

import numpy as np

from gptpipe.dataset.cache import read_shard
from gptpipe.dataset.rows import ShardReader
from gptpipe.dataset.stream import TokenStream


def documents_at(stream: TokenStream, places: np.ndarray) -> list[str]:
    """The documents that hold the tokens at `places`, `corpus:document id`, each once, in the order of the stream.

    Raises:
        UserError: a shard that holds one is gone or damaged.
    """
    documents: list[str] = []
    places = np.unique(places)
    shards = np.searchsorted(stream.starts, places, side="right") - 1
    for number in np.unique(shards):
        file = stream.index[int(number)]
        inside = places[shards == number] - stream.starts[number]
        names, ends = [], []
        place = 0
        for row in ShardReader(read_shard(stream.dataset.url, file)).rows():
            place += len(row.tokens) + row.last
            names.append(row.document_id)
            ends.append(place)
        for row_number in np.searchsorted(ends, inside, side="right"):
            name = f"{file.corpus}:{names[int(row_number)]}"
            if name not in documents:
                documents.append(name)
    return documents
