"""Whether there is text that no dataset was made of yet."""

from __future__ import annotations

from gptpipe.config import DataConfig
from gptpipe.corpus.fingerprints import Fingerprints
from gptpipe.corpus.sources import list_sources


def unread_sources(config: DataConfig, out: str) -> tuple[list[str], int]:
    """Files that are new, or changed by size or version, since datasets in `out` were made.

    Nothing is read but the listing. A file that was taken away is no reason to train again: it is gone from the next
    dataset.

    Returns:
        Their URLs, and how many files there are in all.

    Raises:
        UserError: a corpus is not there.
    """
    known = Fingerprints(out)
    sources = list_sources(config, quiet=True)
    return [source.url for source in sources if not known.knows(source)], len(sources)
