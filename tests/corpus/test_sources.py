"""Proves which files a corpus has: files, folders, globs, URLs and the built-in, in one order, each named once."""

from __future__ import annotations

import functools
import http.server
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptpipe import storage
from gptpipe.config import DataConfig
from gptpipe.corpus import cuts
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.sources import Source, list_sources
from gptpipe.corpus.text import read_text
from gptpipe.errors import UserError
from tests.fixtures.datasets import serving


def sources_of(*corpus: object, **options: object) -> list[Source]:
    return list_sources(DataConfig(corpus=[str(url) for url in corpus], **options))  # type: ignore[arg-type]


def paths_of(*corpus: object) -> list[str]:
    return [source.path for source in sources_of(*corpus)]


def write(folder: Path, *names: str) -> Path:
    """Files of those names below `folder`, each holding its own name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files that count and files that do not."""
    counted = ["b.txt", "a.md", "Z.TXT", "sub/c.py", "sub/deep/d.jsonl", "e.parquet", "f-1.txt", "f-2.txt"]
    left_out = [".hidden.txt", ".git/x.txt", "__pycache__/y.py", "node_modules/z.js", "image.png", "noending"]
    return write(tmp_path / "corpus", *counted, *left_out)


def test_a_folder_gives_its_text_files_sorted_by_relative_path(folder: Path) -> None:
    found = sources_of(folder)
    expected = ["Z.TXT", "a.md", "b.txt", "e.parquet", "f-1.txt", "f-2.txt", "sub/c.py", "sub/deep/d.jsonl"]
    assert [source.path for source in found] == expected
    assert [source.kind for source in found] == ["text"] * 2 + ["text", "parquet"] + ["text"] * 3 + ["jsonl"]
    assert [source.size for source in found] == [len(path) for path in expected]
    assert {source.corpus for source in found} == {"corpus"}
    assert all(storage.read_bytes(source.url) == source.path.encode() for source in found)


@pytest.mark.parametrize("name", ["b.txt", "noending", "image.png", ".hidden.txt"])
def test_a_file_named_by_the_user_is_taken_whatever_it_is_called(folder: Path, name: str) -> None:
    (source,) = sources_of(folder / name)
    assert (source.path, source.kind) == (name, "text")
    assert source.url == str(folder / name)


def test_a_file_s_ending_decides_its_kind_whatever_its_case(tmp_path: Path) -> None:
    write(tmp_path, "a.JSONL", "b.ndjson", "c.Parquet", "d.PQ", "e.Md")
    kinds = {source.path: source.kind for source in sources_of(tmp_path)}
    assert kinds == {"a.JSONL": "jsonl", "b.ndjson": "jsonl", "c.Parquet": "parquet", "d.PQ": "parquet", "e.Md": "text"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["b.txt", "f-1.txt", "f-2.txt"]),
        ("*/*.py", ["sub/c.py"]),
        ("**/*.py", ["sub/c.py"]),
        ("sub/**", ["c.py", "deep/d.jsonl"]),
        ("sub/*", ["c.py"]),
        ("f-?.txt", ["f-1.txt", "f-2.txt"]),
        ("f-[2-9].txt", ["f-2.txt"]),
        ("f-[!2].txt", ["f-1.txt"]),
        ("[bf]*.txt", ["b.txt", "f-1.txt", "f-2.txt"]),
        ("**/*.jsonl", ["sub/deep/d.jsonl"]),
        ("s*/**/*.jsonl", ["sub/deep/d.jsonl"]),
    ],
)
def test_a_glob_gives_what_it_matches_relative_to_the_folder_before_it(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    write(tmp_path, "b.txt", "a.md", "Z.TXT", "sub/c.py", "sub/deep/d.jsonl", "f-1.txt", "f-2.txt", "image.png")
    assert paths_of(tmp_path / pattern) == expected


def test_a_glob_over_everything_gives_what_the_folder_gives(folder: Path) -> None:
    assert paths_of(folder / "**/*") == paths_of(folder)
    assert paths_of(folder / "*.txt") == ["b.txt", "f-1.txt", "f-2.txt"]


def test_a_glob_s_star_stays_in_one_folder_and_its_dot_is_a_dot(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "abtxt.md", "sub/a.txt")
    assert paths_of(tmp_path / "a.*") == ["a.txt"]
    assert paths_of(tmp_path / "*txt") == ["a.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path, "notes [draft].txt", "what?/a.txt")
    assert paths_of(tmp_path / "notes [draft].txt") == ["notes [draft].txt"]
    assert paths_of(tmp_path / "what?") == ["a.txt"]


def test_a_folder_written_relative_or_from_home_gives_the_same_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = paths_of(folder)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert paths_of("corpus") == paths_of("./corpus/") == paths_of("~/corpus") == expected
    assert paths_of("corpus/*.txt") == paths_of("~/corpus/*.txt") == paths_of(folder / "*.txt")
    monkeypatch.chdir(folder)
    assert paths_of("*.txt") == paths_of(folder / "*.txt")


def test_names_that_are_hard_to_write_are_listed_as_they_are(tmp_path: Path) -> None:
    names = ["mit leer.txt", "naïve 漢字 🙂.txt", "hash#1.txt", "percent%20.txt", "quote'\".txt", "new\nline.txt"]
    write(tmp_path, *names)
    assert paths_of(tmp_path) == sorted(names)


def test_a_link_to_a_file_counts_and_a_broken_one_does_not(tmp_path: Path) -> None:
    write(tmp_path, "real.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere.txt")
    assert paths_of(tmp_path) == ["link.txt", "real.txt"]


def test_corpora_stand_in_the_order_given_and_are_named_by_position(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", "x.txt")
    found = sources_of(folder / "b.txt", other, folder / "a.md")
    assert [(source.corpus, source.path) for source in found] == [
        ("corpus", "b.txt"),
        ("corpus-2", "x.txt"),
        ("corpus-3", "a.md"),
    ]


def test_corpora_can_be_named_but_not_twice(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", "a.txt")
    config = DataConfig(corpus=[{"url": str(folder), "name": "mine"}, str(other)])  # type: ignore[list-item]
    assert {source.corpus for source in list_sources(config)} == {"mine", "corpus-2"}
    config = DataConfig(corpus=[str(folder), {"url": str(other), "name": "corpus"}])  # type: ignore[list-item]
    with pytest.raises(UserError, match="two corpora are called 'corpus'") as caught:
        list_sources(config)
    assert caught.value.where == "data.corpus"


def test_a_corpus_is_given_once(folder: Path) -> None:
    config = DataConfig(corpus=[str(folder), {"url": f"{folder}/", "name": "again"}])  # type: ignore[list-item]
    with pytest.raises(UserError, match="given twice"):
        list_sources(config)


def test_files_that_are_no_text_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG")
    with caplog.at_level("INFO", "gptpipe"):
        sources_of(tmp_path)
    assert "1 file left out" in caplog.text
    assert "logo.png" in caplog.text


def test_a_binary_file_named_as_a_corpus_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (source,) = sources_of(tmp_path / "logo.png")
    with pytest.raises(UserError, match="byte 0 is not UTF-8") as caught:
        read_text(source, cuts.SAFE_ANYWHERE, ReadOptions())
    assert "binary" in caught.value.hint


def test_the_version_of_a_file_changes_with_its_content_or_time(tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt") / "a.txt"
    (first,) = sources_of(file)
    assert sources_of(file) == [first]
    os.utime(file, ns=(1, 1))
    (second,) = sources_of(file)
    storage.write_bytes(str(file), b"other")  # a new file under the old name
    os.utime(file, ns=(1, 1))
    (third,) = sources_of(file)
    assert len({first.version, second.version, third.version}) == 3


def test_the_standard_library_is_there_without_what_was_installed_beside_it() -> None:
    found = sources_of("stdlib:")
    paths = {source.path for source in found}
    assert {"json/decoder.py", "asyncio/events.py", "os.py"} <= paths
    assert not [path for path in paths if "-packages/" in path or "__pycache__" in path]
    assert all(path.endswith(".py") for path in paths)
    assert {source.corpus for source in found} == {"stdlib"}
    assert sum(source.size for source in found) > 10_000_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("absent", "no file matches"),
        ("absent/*.txt", "no file matches"),
        ("*.txt", "no file matches"),
        ("", "no file matches"),
        ("images", "none of its 2 files is text"),
        ("empty", "every file of it is empty"),
        ("empty/a.txt", "every file of it is empty"),
    ],
)
def test_a_corpus_without_text_is_refused_by_name(tmp_path: Path, make: str, message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    if make.startswith("images"):
        write(root / "images", "a.png", "b.png")
    if make.startswith("empty"):
        (root / "empty").mkdir()
        (root / "empty" / "a.txt").touch()
    with pytest.raises(UserError, match=message) as caught:
        sources_of(f"{root}/{make}")
    assert caught.value.where == f"{root}/{make}"
    assert caught.value.hint


@pytest.mark.parametrize("url", ["stdlb:", "wikipedia:"])
def test_an_unknown_built_in_is_refused_with_those_that_are_known(url: str) -> None:
    with pytest.raises(UserError) as caught:
        sources_of(url)
    assert caught.value.where == url
    assert "stdlib:" in caught.value.hint


def test_a_url_of_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(UserError) as caught:
        sources_of("gopher://example.org/a.txt")
    assert caught.value.where == "gopher://example.org/a.txt"


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    """The folder behind a web server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with serving(functools.partial(Quiet, directory=str(folder))) as address:
        yield address


def test_a_file_on_the_web_is_listed_and_read(web: str) -> None:
    (source,) = sources_of(f"{web}/sub/c.py")
    assert (source.path, source.kind, source.size) == ("c.py", "text", len("sub/c.py"))
    assert storage.read_bytes(source.url) == b"sub/c.py"


def test_a_file_that_the_web_does_not_have_is_refused_by_name(web: str) -> None:
    with pytest.raises(UserError, match="no file matches") as caught:
        sources_of(f"{web}/absent.txt")
    assert caught.value.where == f"{web}/absent.txt"


# --- object storage ------------------------------------------------------------------------------------------


def upload(folder: Path, url: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            storage.write_bytes(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes())


@pytest.mark.stack
def test_object_storage_gives_the_same_paths_as_a_folder(folder: Path, s3_storage: str) -> None:
    upload(folder, f"{s3_storage}/corpus")
    upload(folder, f"{s3_storage}/corpus-beside-it")
    for below in ("", "/*.md", "/sub/**/*.jsonl", "/f-[!2].txt", "/sub", "/b.txt", "/noending"):
        here, there = sources_of(f"{folder}{below}"), sources_of(f"{s3_storage}/corpus{below}")
        assert [(s.path, s.size, s.kind) for s in there] == [(s.path, s.size, s.kind) for s in here]
        assert all(storage.read_bytes(s.url) == storage.read_bytes(h.url) for s, h in zip(there, here, strict=True))
    assert paths_of(f"{s3_storage}/corpus/") == paths_of(folder)


@pytest.mark.stack
def test_the_version_of_an_object_changes_with_its_content(s3_storage: str) -> None:
    versions = []
    for content in (b"one", b"two", b"one"):
        storage.write_bytes(f"{s3_storage}/a.txt", content)
        versions.append(sources_of(s3_storage)[0].version)
    assert versions[0] != versions[1]
    assert all(versions)


@pytest.mark.stack
@pytest.mark.parametrize("below", ["", "/absent.txt", "/absent/*.txt"])
def test_a_place_in_object_storage_without_text_is_refused_by_name(s3_storage: str, below: str) -> None:
    with pytest.raises(UserError, match="no file matches") as caught:
        sources_of(s3_storage + below)
    assert caught.value.where == s3_storage + below


def test_links_to_folders_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    corpus.mkdir()
    for number in range(3):
        (elsewhere / f"{number}.txt").write_text("text")
    (elsewhere / "deep" / "d.txt").write_text("text")
    (corpus / "a.txt").write_text("text")
    (corpus / "b").symlink_to(elsewhere)
    (corpus / "c").symlink_to(elsewhere)
    (corpus / "self").symlink_to("self")
    (corpus / "around").symlink_to(corpus)
    (corpus / "nothing").symlink_to(tmp_path / "none")
    (elsewhere / "up").symlink_to(corpus)
    found = list_sources(DataConfig(corpus=[str(corpus)]))
    assert [source.path for source in found] == ["a.txt", "b/0.txt", "b/1.txt", "b/2.txt", "b/deep/d.txt"]
    assert "5 names passed over" in caplog.text
    assert "around: a link to a folder that is read already" in caplog.text
    caplog.clear()
    in_glob = list_sources(DataConfig(corpus=[str(corpus / "**" / "*.txt")]))
    assert [source.path for source in in_glob] == [source.path for source in found]


def test_a_link_whose_folder_goes_away_while_it_is_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a")
    (tmp_path / "other").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "other")
    stat = Path.stat

    def removed_first(path: Path, **more: bool) -> os.stat_result:
        if path.name == "link":
            (tmp_path / "other").rmdir()
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", removed_first)
    passed_over: list[str] = []
    assert [entry.path for entry in storage.list_files(str(tmp_path / "corpus"), passed_over)] == ["a.txt"]
    assert passed_over == ["link: No such file or directory"]


def test_a_corpus_that_is_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [source.path for source in list_sources(DataConfig(corpus=[str(tmp_path / "link")]))] == ["a.txt"]


@pytest.mark.stack
def test_a_bucket_that_is_not_there_is_called_so(s3_storage: str) -> None:
    with pytest.raises(UserError, match="there is no such bucket") as caught:
        sources_of("s3://no-such-bucket-here/corpus")
    assert caught.value.where == "s3://no-such-bucket-here/corpus"
    with pytest.raises(UserError) as unwritable:
        storage.check_writable("s3://no-such-bucket-here/export")
    assert "probe" not in str(unwritable.value)
