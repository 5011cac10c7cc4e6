"""What is done to the text of a document, and which documents are left out for their length."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from gptpipe.config import DataConfig


@dataclass(frozen=True)
class ReadOptions:
    """What decides which documents there are and what they say; the fields are `DataConfig`'s.

    Attributes:
        validation: share of the one document that is split by position, or of all hashes of texts.
    """

    text_field: str = "text"
    on_error: str = "stop"
    nfc: bool = False
    min_bytes: int = 0
    max_bytes: int = 0
    validation: float = 0.0
    by_position: bool = False

    @classmethod
    def of(cls, config: DataConfig, *, by_position: bool = False, validation: float = 0.0) -> ReadOptions:
        return cls(
            text_field=config.text_field,
            on_error=config.on_error,
            nfc=config.nfc,
            min_bytes=config.min_bytes,
            max_bytes=config.max_bytes,
            validation=validation,
            by_position=by_position,
        )

    def clean(self, text: str) -> str:
        """`text` as it is tokenized. Cleaning the pieces of a text gives the pieces of the clean text."""
        return unicodedata.normalize("NFC", text) if self.nfc and not text.isascii() else text

    def wrong_length(self, size: int) -> str:
        """Why a document of `size` UTF-8 bytes, not cleaned yet, is left out; empty when it is not."""
        if size < self.min_bytes:
            return "too short"
        return "too long" if self.max_bytes and size > self.max_bytes else ""
