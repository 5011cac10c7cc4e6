"""What is new since an earlier dataset, told by what documents say; new and old windows are drawn by their shares."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gptpipe.config import DataConfig, TrainConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.loader import TrainLoader
from gptpipe.dataset.news import News, news_since, read_stretches, write_stretches
from gptpipe.dataset.sample_order import SampleOrder
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer

WORDS = ["red", "green", "blue", "river", "house", "yes", "no", "\n", "return", "import"]
CONTEXT = 16


def text_of(number: int) -> str:
    draw = random.Random(number)
    return f"text {number}: " + " ".join(draw.choices(WORDS, k=draw.randint(3, 90)))


def make(folder: Path, files: dict[str, int], out: Path) -> Dataset:
    """A dataset of these texts, a file each."""
    for name, number in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text_of(number))
    config = DataConfig(corpus=[{"url": str(folder), "name": "words"}], validation=0.2)
    return open_dataset(tokenize(config, str(out)).dataset)


def texts_in(dataset: Dataset, split: str, news: News) -> list[str]:
    """The documents in the stretches, as text."""
    stream, tokenizer = TokenStream(dataset, split, TokenCache()), get_tokenizer("gpt2")
    found: list[str] = []
    for begin, end in news.stretches.tolist():
        ids = stream.read(begin, end)
        assert ids[-1] == tokenizer.end_of_text
        cuts = np.flatnonzero(ids == tokenizer.end_of_text)
        found += [tokenizer.decode(piece[piece != tokenizer.end_of_text].tolist()) for piece in np.split(ids, cuts)]
    return [text for text in found if text]


def test_new_documents_are_those_whose_text_was_not_there(tmp_path: Path) -> None:
    """Some stay, some go, some are new, some lie in other files now."""
    earlier = make(tmp_path / "a", {f"{number}.txt": number for number in range(40)}, tmp_path / "out")
    files = {f"moved-{number}.txt": number for number in range(10, 20)}
    files |= {f"c/{number}.txt": number for number in range(20, 60)}
    now = make(tmp_path / "b", files, tmp_path / "out")
    new = {text_of(number) for number in range(40, 60)}
    found: list[str] = []
    gone = 0
    for split in ("train", "validation"):
        news = news_since(earlier, now, split)
        texts = texts_in(now, split, news)
        found += texts
        gone += news.gone
        assert (news.documents, len(news.names)) == (len(texts), len(texts))
        assert news.tokens == sum(end - begin for begin, end in news.stretches.tolist())
        assert all(name.startswith("words:c/") for name in news.names)
    assert sorted(found) == sorted(new)
    assert gone == 10


def test_lines_that_are_added_to_a_file_are_new_and_the_others_are_not(tmp_path: Path) -> None:
    def made(lines: int) -> Dataset:
        file = tmp_path / "log.jsonl"
        file.write_text("".join(f'{{"text": "entry {number} of the log"}}\n' for number in range(lines)))
        config = DataConfig(corpus=[{"url": str(file), "name": "log"}], validation=0)
        return open_dataset(tokenize(config, str(tmp_path / "out")).dataset)

    news = news_since(made(50), now := made(53), "train")
    assert texts_in(now, "train", news) == [f"entry {number} of the log" for number in (50, 51, 52)]


def test_nothing_is_new_in_the_same_and_everything_with_another_tokenizer(tmp_path: Path) -> None:
    dataset = make(tmp_path / "a", {f"{number}.txt": number for number in range(20)}, tmp_path / "out")
    same = news_since(dataset, dataset, "train")
    assert (same.documents, same.tokens, same.gone, same.stretches.shape) == (0, 0, 0, (0, 2))
    config = DataConfig(
        corpus=[{"url": str(tmp_path / "a"), "name": "words"}], validation=0.2, tokenizer="gpt2", min_bytes=1
    )
    other = open_dataset(tokenize(config, str(tmp_path / "other")).dataset)
    assert news_since(dataset, other, "train").documents == 0  # other options, the same text
    manifest = {**dataset.manifest, "tokenizer": {**dataset.tokenizer, "sha256": "0" * 64}}
    everything = news_since(Dataset(dataset.url, manifest), dataset, "train")
    assert everything.documents == dataset.total("documents", "train")


def test_a_document_over_several_shards_is_new_where_it_is(tmp_path: Path) -> None:
    """A file of 3 MB in ranges of 128 kB: a word in its middle is changed."""
    words = " ".join(random.Random(1).choices(WORDS, k=500_000))

    def made(text: str) -> Dataset:
        (tmp_path / "large.txt").write_text(text)
        config = DataConfig(corpus=[{"url": str(tmp_path / "large.txt"), "name": "x"}], validation=0, shard_megabytes=1)
        return open_dataset(tokenize(config, str(tmp_path / "out")).dataset)

    earlier = made(words)
    now = made(words[:1_500_000] + " violet" + words[1_500_000:])
    news = news_since(earlier, now, "train")
    total = now.total("tokens", "train")
    assert 0 < news.tokens <= total
    begin, end = int(news.stretches[0, 0]), int(news.stretches[-1, 1])
    assert begin > total / 4  # what lies before the change is cut as it was
    stream = TokenStream(now, "train", TokenCache())
    assert " violet" in get_tokenizer("gpt2").decode(stream.read(begin, end).tolist())


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStream, News]:
    """A dataset of 200 texts of which 30, spread over it, are new."""
    folder = tmp_path_factory.mktemp("grown")
    earlier = make(folder / "a", {f"{number}.txt": number for number in range(200) if number % 7}, folder / "out")
    now = make(folder / "b", {f"{number}.txt": number for number in range(200)}, folder / "out")
    return TokenStream(now, "train", TokenCache(folder / "cache")), news_since(earlier, now, "train")


def order_of(grown: tuple[TokenStream, News], **train: object) -> SampleOrder:
    stream, news = grown
    return SampleOrder(stream, CONTEXT, TrainConfig(batch_size=8, **train), news.stretches)  # type: ignore[arg-type]


def hold_news(news: News, begins: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether each window has a target in new text, by looking at every target."""
    new = {place for begin, end in news.stretches.tolist() for place in range(begin, end)}
    windows = zip(begins.tolist(), targets.tolist(), strict=True)
    return np.array([any(place in new for place in range(begin + 1, begin + size + 1)) for begin, size in windows])


@pytest.mark.parametrize("shuffle", ["global", "two-level"])
@pytest.mark.parametrize("replay", [0.0, 0.25, 0.5])
def test_new_and_old_windows_are_drawn_by_their_shares(
    grown: tuple[TokenStream, News], replay: float, shuffle: str
) -> None:
    stream, news = grown
    starts, lengths = order_of(grown, replay=replay, shuffle=shuffle).places(np.arange(8192))
    drawn = hold_news(news, starts, lengths)
    assert drawn.sum() == round((1 - replay) * 8192)
    everything = np.arange((stream.length - 1) // CONTEXT) * CONTEXT
    new = hold_news(news, everything, np.full(len(everything), CONTEXT))
    assert set(starts[drawn].tolist()) == set(everything[new].tolist())
    assert set(starts[~drawn].tolist()) == (set(everything[~new].tolist()) if replay else set())


def test_each_new_window_is_drawn_as_often_as_another(grown: tuple[TokenStream, News]) -> None:
    order = order_of(grown, replay=0.0)
    starts, _ = order.places(np.arange(order.count * 3))
    assert set(Counter(starts.tolist()).values()) == {3}


def test_windows_inside_documents_are_new_with_their_document(grown: tuple[TokenStream, News]) -> None:
    order = order_of(grown, replay=0.5, join_documents=False)
    starts, lengths = order.places(np.arange(8192))
    new = hold_news(grown[1], starts, lengths)
    assert lengths[new].sum() == pytest.approx(lengths.sum() / 2, rel=0.02)  # shares are of tokens


def test_a_mixture_keeps_its_shares_where_one_corpus_alone_has_news(tmp_path: Path) -> None:
    def made(numbers: list[int]) -> Dataset:
        for name, chosen in (("web", range(1000, 1060)), ("code", numbers)):
            (tmp_path / name).mkdir(exist_ok=True)
            for number in chosen:
                (tmp_path / name / f"{number}.txt").write_text(text_of(number))
        config = DataConfig(corpus=[{"url": str(tmp_path / name), "name": name} for name in ("web", "code")])
        return open_dataset(tokenize(config, str(tmp_path / "out")).dataset)

    earlier, now = made(list(range(50))), made(list(range(60)))
    news = news_since(earlier, now, "train")
    stream = TokenStream(now, "train", TokenCache())
    config = TrainConfig(batch_size=8, mixture={"web": 0.75, "code": 0.25}, replay=0.5)
    starts, _ = SampleOrder(stream, CONTEXT, config, news.stretches).places(np.arange(8192))
    corpus = np.searchsorted(stream.corpus_starts, starts, side="right") - 1
    web = stream.corpora.index("web")
    assert (corpus == web).sum() == 6144
    assert hold_news(news, starts, np.full(len(starts), CONTEXT)).sum() == 1024


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_read_the_same_samples_and_a_seek_goes_on_there(
    grown: tuple[TokenStream, News], world_size: int
) -> None:
    stream, news = grown
    config = TrainConfig(batch_size=6, replay=0.5)

    def batches(rank: int, world: int, begin: int, count: int) -> list[np.ndarray]:
        loader = TrainLoader(
            stream, context_length=CONTEXT, config=config, rank=rank, world_size=world, news=news.stretches
        )
        loader.seek(begin * 6)
        try:
            return [loader.next_batch().inputs.numpy() for _ in range(count)]
        finally:
            loader.close()

    whole = batches(0, 1, 0, 20)
    parts = [batches(rank, world_size, 8, 12) for rank in range(world_size)]
    for step in range(12):
        assert np.array_equal(np.concatenate([part[step] for part in parts]), whole[8 + step])


def test_without_news_the_order_is_as_it_was(grown: tuple[TokenStream, News]) -> None:
    stream, _ = grown
    plain = SampleOrder(stream, CONTEXT, TrainConfig(batch_size=8)).places(np.arange(500))[0]
    other = SampleOrder(stream, CONTEXT, TrainConfig(batch_size=8, replay=0.1)).places(np.arange(500))[0]
    assert np.array_equal(plain, other)


def test_kept_stretches_come_back_or_are_refused(tmp_path: Path) -> None:
    place, stretches = str(tmp_path / "news.bin"), np.array([[0, 5], [9, 12]], dtype=np.int64)
    sha256 = write_stretches(place, stretches)
    assert np.array_equal(read_stretches(place, sha256), stretches)
    content = bytearray(Path(place).read_bytes())
    content[3] ^= 1
    Path(place).write_bytes(content)
    with pytest.raises(UserError, match="missing or damaged"):
        read_stretches(place, sha256)
    Path(place).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        read_stretches(place, sha256)
