"""Proves that packed files and files on the web have the tokens of the plain ones, or are refused by name."""

from __future__ import annotations

import gzip
import http.server
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.corpus import text as text_files
from gptpipe.dataset.dataset import open_dataset
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer
from tests.fixtures.corpora import build, contents, documents_of, refused, some_text
from tests.fixtures.datasets import serving

MB = 1_000_000
GPT2 = get_tokenizer()
PLAIN: dict[str, bytes] = {
    "a.txt": some_text(1, 5000).encode(),
    "sub/b.md": ("漢字 🙂‍🙃 naïve\r\n" * 300).encode(),
    "large.txt": some_text(2, 1_300_000).encode(),
    "lines.jsonl": b"".join(json.dumps({"text": some_text(i)}).encode() + b"\n" for i in range(10, 40)),
    "more.ndjson": b'{"text": "without a newline at its end"}',
    "large.jsonl": b"".join(json.dumps({"text": some_text(i, 30_000)}).encode() + b"\n" for i in range(50, 90)),
}


def zstd_of(data: bytes) -> bytes:
    """One frame, through a buffer of Arrow's own: closing the stream closes a Python one."""
    sink = pa.BufferOutputStream()
    stream = pa.CompressedOutputStream(sink, "zstd")
    stream.write(data)
    stream.close()
    return bytes(sink.getvalue().to_pybytes())


PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd_of}


def folder_of(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def unnamed(dataset: str) -> dict[str, list[int]]:
    """The tokens of every document by its id without the name of a packing."""
    return {name.replace(".gz#", "#").replace(".zst#", "#"): tokens for name, tokens in documents_of(dataset).items()}


def tokens_of(content: bytes) -> list[int]:
    tokens: list[int] = GPT2.encode_array(content.decode()).tolist()
    return tokens


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    root = tmp_path_factory.mktemp("plain")
    return documents_of(build(root / "out", folder_of(root / "corpus", PLAIN), validation=0, shard_megabytes=1).dataset)


@pytest.mark.parametrize("packing", PACK)
def test_packed_files_have_the_documents_and_tokens_of_the_plain_ones(
    tmp_path: Path, plain: dict[str, list[int]], packing: str
) -> None:
    files = {name + packing: PACK[packing](content) for name, content in PLAIN.items()}
    files["UPPER.TXT" + packing.upper()] = PACK[packing](b"upper")
    made = build(tmp_path / "out", folder_of(tmp_path / "corpus", files), validation=0, shard_megabytes=1)
    found = unnamed(made.dataset)
    assert found.pop("UPPER.TXT" + packing.upper() + "#0") == tokens_of(b"upper")
    assert found == plain
    assert build(tmp_path / "out", tmp_path / "corpus", validation=0, shard_megabytes=1).already_done


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("count", [2, 40])
def test_several_packed_members_in_one_file_are_one_text(tmp_path: Path, packing: str, count: int) -> None:
    parts = [f"part {i} ".encode() * (i * 700) + "漢字".encode() for i in range(count)]
    content = b"".join(PACK[packing](part) for part in parts)
    lines = b"".join(PACK[packing](json.dumps({"text": str(i)}).encode() + b"\n") for i in range(count))
    split = json.dumps({"text": "across members"}).encode()
    lines += PACK[packing](split[:9]) + PACK[packing](b"") + PACK[packing](split[9:])
    folder = folder_of(tmp_path / "corpus", {f"a.txt{packing}": content, f"b.jsonl{packing}": lines})
    found = documents_of(build(tmp_path / "out", folder, validation=0).dataset)
    assert found[f"a.txt{packing}#0"] == tokens_of(b"".join(parts))
    texts = [tokens for name, tokens in found.items() if name.startswith("b.")]
    assert texts == [tokens_of(str(i).encode()) for i in range(count)] + [tokens_of(b"across members")]


@pytest.mark.parametrize("packing", PACK)
def test_one_packed_text_is_split_by_position(tmp_path: Path, packing: str) -> None:
    text = some_text(5, 40_000)
    folder = folder_of(tmp_path / "corpus", {f"a.txt{packing}": PACK[packing](b"\xef\xbb\xbf" + text.encode())})
    made = build(tmp_path / "out", folder, validation=0.1)
    train, validation = documents_of(made.dataset).values()
    at = int(0.9 * len(text))
    assert (train, validation) == (tokens_of(text[:at].encode()), tokens_of(text[at:].encode()))


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_file_that_holds_nothing_is_empty(tmp_path: Path, packing: str) -> None:
    files = {f"a.txt{packing}": PACK[packing](b""), f"b.jsonl{packing}": PACK[packing](b""), "c.txt": b"text"}
    made = build(tmp_path / "out", folder_of(tmp_path / "corpus", files), validation=0)
    assert list(documents_of(made.dataset)) == ["c.txt#0"]
    assert made.dropped == {"empty": 1}  # a JSONL file without lines has no document that could be empty


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("alone", [False, True])
def test_a_packed_file_cut_off_anywhere_is_refused_by_name(
    tmp_path: Path, kind: str, packing: str, alone: bool
) -> None:
    text = some_text(3, 20_000)
    whole = PACK[packing](text.encode() if kind == "txt" else json.dumps({"text": text}).encode() + b"\n")
    rest = {} if alone else {"other.txt": b"other"}
    name = f"cut.{kind}{packing}"
    for length in sorted({1, 3, 9, 11, len(whole) // 2, len(whole) - 8, len(whole) - 4, len(whole) - 1}):
        folder = folder_of(tmp_path / "corpus", {name: whole[:length], **rest})
        error = refused(tmp_path / "out", folder)
        assert error.where == str(folder / name), length
        assert f"not a whole {'gzip' if packing == '.gz' else 'zstd'} file" in error.message
    folder = folder_of(tmp_path / "corpus", {name: whole + whole[:-5], **rest})
    assert refused(tmp_path / "out", folder).where == str(folder / name)


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("content", [b"plain text, not packed", b"\x00" * 5000, b"\x1f\x8b garbage" * 9])
def test_what_is_not_packed_under_the_name_of_a_packing_is_refused_by_name(
    tmp_path: Path, packing: str, content: bytes
) -> None:
    for kind in ("txt", "jsonl"):
        folder = folder_of(tmp_path / kind, {f"a.{kind}{packing}": content, "other.txt": b"other"})
        for workers in (1, 2):
            error = refused(tmp_path / "out", folder, workers=workers)
            assert error.where == str(folder / f"a.{kind}{packing}")


@pytest.mark.parametrize("packing", PACK)
def test_a_flipped_bit_is_refused_by_name_or_ends_without_a_traceback(tmp_path: Path, packing: str) -> None:
    """gzip has a checksum of its content; Arrow's zstd has none, so there a flip may be text that was not meant."""
    content = some_text(4, 3000).encode()
    whole = bytearray(PACK[packing](content))
    whole[len(whole) // 2] ^= 4
    folder = folder_of(tmp_path / "corpus", {f"a.txt{packing}": bytes(whole), "other.txt": b"other"})
    if packing == ".gz":
        assert refused(tmp_path / "out", folder).where == str(folder / "a.txt.gz")
        return
    with suppress(UserError):  # either end is right, a traceback is not
        build(tmp_path / "out", folder, validation=0, errors="replace")


@pytest.mark.parametrize("packing", PACK)
def test_a_text_longer_than_is_held_is_read_as_often_as_it_takes(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{i} " + some_text(i, 200) for i in range(5000))
    assert len(text.encode()) > 2 * 500_000
    name = f"a.txt{packing}"
    folder = folder_of(tmp_path / "corpus", {name: PACK[packing](text.encode())})
    expected = [contents(build(tmp_path / f"held-{v}", folder, validation=v).dataset) for v in (0, 0.1)]
    both = folder_of(tmp_path / "both", {name: PACK[packing](text.encode()), "other.txt": b"other"})
    expected.append(contents(build(tmp_path / "held-both", both, validation=0, drop_duplicates=True).dataset))
    monkeypatch.setattr(text_files, "HELD", 600_000)
    made = build(tmp_path / "out", folder, validation=0)
    assert documents_of(made.dataset)[f"{name}#0"] == tokens_of(text.encode())
    split = build(tmp_path / "split", folder, validation=0.1)
    last = build(tmp_path / "out-both", both, validation=0, drop_duplicates=True)
    assert [contents(result.dataset) for result in (made, split, last)] == expected


def test_a_broken_line_of_a_packed_file_is_named_by_its_number(tmp_path: Path) -> None:
    lines = [json.dumps({"text": some_text(i)}).encode() for i in range(5000)]
    lines[4321] = lines[4321][:-1]
    folder = folder_of(tmp_path / "corpus", {"a.jsonl.gz": gzip.compress(b"\n".join(lines)), "b.txt": b"b"})
    error = refused(tmp_path / "out", folder)
    assert error.where == f"{folder / 'a.jsonl.gz'}, line 4322"


def test_a_bad_byte_of_a_packed_text_is_named_by_its_place_in_the_text(tmp_path: Path) -> None:
    content = some_text(1, 1_200_000).encode() + b"\xff end"
    folder = folder_of(tmp_path / "corpus", {"a.txt.gz": gzip.compress(content), "b.txt": b"b"})
    error = refused(tmp_path / "out", folder)
    assert error.where == str(folder / "a.txt.gz")
    assert f"byte {len(content) - 5} is not UTF-8 (0xff)" in error.message


def test_copies_are_found_whatever_they_are_packed_in(tmp_path: Path) -> None:
    text = some_text(1).encode()
    files = {"c.txt": text, "b.txt.gz": gzip.compress(text), "a.txt.zst": zstd_of(text)}
    files["d.jsonl.gz"] = gzip.compress(json.dumps({"text": text.decode()}).encode() + b'\n{"text": "other"}')
    made = build(tmp_path / "out", folder_of(tmp_path / "corpus", files), validation=0, drop_duplicates=True)
    assert sorted(documents_of(made.dataset))[0] == "a.txt.zst#0"
    assert made.documents == 2
    assert made.dropped == {"duplicate": 3}


# --- on the web ----------------------------------------------------------------------------------------------


class Site:
    """Files behind a web server of this machine; `ranges`, `lengths`, `etags`: what it tells and understands."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.ranges = self.lengths = True
        self.etags = False
        self.url = ""


def pages_of(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # the end of the connection is the end of the content

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, with_content: bool) -> None:
            content = site.files.get(self.path.split("?")[0].lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            wanted = self.headers.get("Range", "")
            if site.ranges and wanted.startswith("bytes="):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                begin, end = int(first or 0), min(int(last or len(content)), len(content) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end}/{len(content)}")
                content = content[begin : end + 1]
            else:
                self.send_response(200)
            if site.ranges:
                self.send_header("Accept-Ranges", "bytes")
            if site.etags:
                self.send_header("ETag", f'"{hash(content)}"')
            if site.lengths:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content:
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(content)

    return Handler


@pytest.mark.parametrize("etags", [False, True])
@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "lines.jsonl", "large.txt", "large.jsonl.gz"])
def test_a_file_on_the_web_makes_the_dataset_of_the_same_file_here(
    tmp_path: Path, name: str, ranges: bool, etags: bool
) -> None:
    plain = name.removesuffix(".gz").removesuffix(".zst")
    content = PLAIN[plain] if name == plain else PACK[Path(name).suffix](PLAIN[plain])
    site = Site({f"some/{name}": content})
    site.ranges, site.etags = ranges, etags
    here = build(tmp_path / "here", folder_of(tmp_path / "corpus", {name: content}) / name)
    with serving(pages_of(site)) as url:
        made = build(tmp_path / "out", f"{url}/some/{name}")
        assert build(tmp_path / "out", f"{url}/some/{name}").already_done
    assert made.id == here.id
    assert contents(made.dataset) == contents(here.dataset)


def test_a_large_file_on_the_web_makes_the_dataset_of_the_same_file_here(tmp_path: Path) -> None:
    """Here it is read in ranges. The id is that of the content, so the files must be the same too."""
    site = Site({"large.txt": PLAIN["large.txt"] * 2})
    here = build(tmp_path / "here", folder_of(tmp_path / "corpus", site.files) / "large.txt", shard_megabytes=1)
    with serving(pages_of(site)) as url:
        made = build(tmp_path / "out", f"{url}/large.txt", shard_megabytes=1)
    assert made.id == here.id
    assert contents(made.dataset) == contents(here.dataset)


def test_a_text_read_in_ranges_and_then_from_the_web_keeps_all_of_its_text(tmp_path: Path) -> None:
    text = PLAIN["large.txt"] * 2
    site = Site({"large.txt": text})
    local = folder_of(tmp_path / "corpus", {"large.txt": text, "small.txt": b"small"})
    other = folder_of(tmp_path / "other", {"other.txt": b"other"})
    build(tmp_path / "out", local, validation=0, shard_megabytes=1)
    with serving(pages_of(site)) as url:
        made = build(tmp_path / "out", f"{url}/large.txt", other, validation=0, shard_megabytes=1)
    assert np.array_equal(documents_of(made.dataset)["large.txt#0"], GPT2.encode_array(text.decode()))


@pytest.mark.parametrize("name", ["large.txt", "large.txt.gz", "large.parquet"])
def test_a_file_of_many_megabytes_on_the_web_is_read_whether_or_not_the_server_knows_ranges(
    tmp_path: Path, name: str
) -> None:
    """fsspec asks for 5 MB at once, and many a web server, Python's own too, does not know ranges."""
    text = PLAIN["large.txt"] * 5
    if name == "large.parquet":
        sink = pa.BufferOutputStream()
        texts = [text[i : i + 1000].decode(errors="replace") for i in range(0, len(text), 1000)]
        pq.write_table(pa.table({"text": texts}), sink, compression="none", use_dictionary=False)
        content = sink.getvalue().to_pybytes()
    else:
        content = text if name == "large.txt" else gzip.compress(text, compresslevel=0)
    assert len(content) > 5 * 2**20
    site = Site({name: content})
    here = build(tmp_path / "here", folder_of(tmp_path / "corpus", site.files) / name, validation=0)
    for ranges in (False, True):
        site.ranges = ranges
        with serving(pages_of(site)) as url:
            made = build(tmp_path / f"ranges {ranges}", f"{url}/{name}", validation=0)
        assert contents(made.dataset) == contents(here.dataset), f"ranges: {ranges}"


@pytest.mark.parametrize("name", ["a.txt", "lines.jsonl", "a.txt.gz"])
def test_a_server_that_does_not_say_how_long_a_file_is_is_refused_or_read_whole(tmp_path: Path, name: str) -> None:
    content = PLAIN.get(name) or gzip.compress(PLAIN["a.txt"])
    site = Site({name: content})
    site.lengths = site.ranges = False
    with serving(pages_of(site)) as url:
        error = refused(tmp_path / "out", f"{url}/{name}")
    assert error.where == f"{url}/{name}"
    assert "how large" in error.message


def test_a_truncated_packed_file_on_the_web_is_refused_by_its_url(tmp_path: Path) -> None:
    site = Site({"a.txt.gz": gzip.compress(PLAIN["a.txt"])[:-3]})
    with serving(pages_of(site)) as url:
        assert refused(tmp_path / "out", f"{url}/a.txt.gz").where == f"{url}/a.txt.gz"


def test_a_file_that_changes_on_the_web_makes_another_dataset(tmp_path: Path) -> None:
    site = Site({"a.txt": b"the first content of the file"})
    with serving(pages_of(site)) as url:
        first = build(tmp_path / "out", f"{url}/a.txt", validation=0)
        site.files["a.txt"] = b"the other content of the file"  # as long, and nothing but the content says so
        second = build(tmp_path / "out", f"{url}/a.txt", validation=0)
    assert second.id != first.id
    assert documents_of(second.dataset)["a.txt#0"] == tokens_of(b"the other content of the file")
    assert open_dataset(tmp_path.joinpath("out").as_posix()).id == second.id
