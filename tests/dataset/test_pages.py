"""Shard files decoded page by page: what Arrow reads, and no damaged page."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe.dataset import rows
from gptpipe.dataset.pages import column_pages
from gptpipe.dataset.rows import Note, Row, ShardReader, ShardWriter
from gptpipe.tokenizer import get_tokenizer

SEPARATOR = 50_256


def written(lengths: list[tuple[int, bool]], folder: str, seed: int = 0) -> bytes:
    """A shard file of rows of those lengths, as the writer of datasets makes it."""
    draw = np.random.default_rng(seed)
    with ShardWriter(folder, "corpus", "a" * 32, get_tokenizer("gpt2")) as writer:
        for number, (length, last) in enumerate(lengths):
            tokens = draw.integers(0, 50_257, length).astype(np.uint16)
            writer.add("train", Row(f"file.txt#{number}", 0, last, tokens, length))
        writer.commit(Note({}))
    return Path(folder, rows.shard_path("train", "a" * 32)).read_bytes()


def by_arrow(content: bytes) -> list[np.ndarray]:
    """Each row group's tokens with separators, by way of Arrow's own reader."""
    groups = []
    for group in range(ShardReader(content).row_groups):
        pieces: list[np.ndarray] = []
        for row in ShardReader(content).group(group):
            pieces += [row.tokens, np.array([SEPARATOR] * row.last, np.uint16)]
        groups.append(np.concatenate(pieces))
    return groups


def by_pages(content: bytes) -> list[np.ndarray]:
    reader = ShardReader(content)
    return [
        reader.stream(group, SEPARATOR, np.empty(3_000_000, np.uint16)).copy() for group in range(reader.row_groups)
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.one_of(st.integers(0, 3), st.integers(0, 40_000)), st.booleans()), min_size=1),
    group=st.sampled_from([1, 500, 100_000, 1_000_000]),
    page=st.sampled_from([64, 5_000, 1 << 20]),
)
def test_pages_hold_what_arrow_reads(
    lengths: list[tuple[int, bool]], group: int, page: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "ROW_GROUP_TOKENS", group)
        patch.setattr(rows, "PAGE_BYTES", page)
        patch.setattr(rows, "BATCH_ROWS", max(1, page // 16))
        content = written(lengths, str(tmp_path_factory.mktemp("shard")))
    expected, found = by_arrow(content), by_pages(content)
    assert len(found) == len(expected)
    for ours, arrows in zip(found, expected, strict=True):
        assert np.array_equal(ours, arrows)


def test_levels_of_every_pattern(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rows of one token and of none, in long runs and mixed: every form in which levels are packed."""
    draw = np.random.default_rng(1)
    patterns = [
        [1] * 5_000,
        [0] * 5_000,
        [0] + [3] * 100 + [0],
        draw.integers(0, 3, 20_000).tolist(),
        (draw.integers(0, 2, 5_000) * 400).tolist(),
        [8, 16, 24] * 1_000,
    ]
    for pattern in patterns:
        lasts = draw.integers(0, 2, len(pattern)).astype(bool).tolist()
        content = written(list(zip(pattern, lasts, strict=True)), str(tmp_path_factory.mktemp("shard")))
        for ours, arrows in zip(by_pages(content), by_arrow(content), strict=True):
            assert np.array_equal(ours, arrows)


def test_a_chunk_cut_off_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    content = written([(300, True)] * 20, str(tmp_path_factory.mktemp("shard")))
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(3)
    chunk = memoryview(content)[column.data_page_offset :][: column.total_compressed_size]
    for size in range(1, len(chunk), 37):
        with pytest.raises(ValueError, match="page"):
            list(column_pages(chunk[:size], nested=True))


@pytest.mark.parametrize("options", [{"use_dictionary": True}, {"data_page_version": "2.0"}])
def test_pages_of_another_layout_are_refused(options: dict[str, object]) -> None:
    out = io.BytesIO()
    table = pa.table({"tokens": pa.array([[1, 2, 2, 2]] * 100, pa.list_(pa.uint16()))})
    pq.write_table(table, out, **{"compression": "zstd", "use_dictionary": False, **options})
    column = pq.ParquetFile(out).metadata.row_group(0).column(0)
    first = column.dictionary_page_offset or column.data_page_offset
    chunk = memoryview(out.getvalue())[first:][: column.total_compressed_size]
    with pytest.raises(ValueError, match=r"expected a plain data page|without a header"):
        list(column_pages(chunk, nested=True))
