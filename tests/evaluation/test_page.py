"""Proves that the page shows the text and each token's numbers, needs nothing else, and can be read in both schemes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest
import torch

from gptpipe import GPT, ModelConfig
from gptpipe.evaluation.evaluate import evaluate_whole
from gptpipe.evaluation.result import Scored
from gptpipe.tokenizer import get_tokenizer

TEXT = 'if a < b and "c" > \'d\':\n\tprint("</script><b>naïve 東京 &amp; 🙂</b>")\n' * 4


class Reader(HTMLParser):
    """The spans of the text, what the page loads, and what does not close."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[str] = []
        self.levels: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [str(values[name]) for name in ("src", "href") if name in values]
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if values.get("class") == "text":
            self.inside = True
        elif self.inside:
            self.spans.append("")
            self.levels.append(str(values["class"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.inside = self.inside and tag != "div"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.spans[-1] += data


@pytest.fixture(scope="module")
def scored() -> Scored:
    torch.manual_seed(4)
    return evaluate_whole(GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32)), text=TEXT)


def test_the_text_stands_in_the_page_with_every_tokens_numbers(scored: Scored) -> None:
    page = scored.page()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.loads == []
    assert "http" not in page
    ids = get_tokenizer().encode(TEXT)
    assert len(reader.spans) == len(ids)
    shown = "".join(span for span in reader.spans if span != "·")  # bytes whose character a later token ends
    assert shown.replace("↵\n", "\n") == TEXT
    looks = json.loads(re.findall(r'id="looks">(.*?)</script>', page, re.DOTALL)[0])
    assert len(looks) == len(ids)
    for (text, nats, probability, rank, alternatives), level in zip(looks, reader.levels, strict=True):
        assert probability == pytest.approx(2.718281828**-nats, rel=1e-3)
        assert 1 <= rank <= 50257
        assert len(alternatives) == 5
        assert level == f"l{sum(nats >= least for least in (1, 2.5, 4.5, 7))}"
        assert isinstance(text, str)
    assert f"{scored.evaluation.cross_entropy:,.4f}" in page
    assert "as it begins" in page


def test_every_mark_is_read_on_its_ground_and_differs_without_colour() -> None:
    css = resources.files("gptpipe.evaluation").joinpath("page.css").read_text("utf-8")
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for ground in ("paper", "l1", "l2", "l3", "l4"):
            assert contrast(colours["ink"], colours[ground]) >= 4.5, (ground, colours)
        assert contrast(colours["quiet"], colours["paper"]) >= 4.5
    lines = [re.search(rf"\.legend \.l{i} {{ border-bottom: (.*?);", css) for i in range(1, 5)]
    assert len({found[1] for found in lines if found}) == 4


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
