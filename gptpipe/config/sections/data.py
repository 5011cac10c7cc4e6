"""From text to token shards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from gptpipe.config.fields import Section, operational, result, without_secret


class Corpus(Section):
    """One source of text: a file, folder, glob, `s3://` URL or built-in (`stdlib:`)."""

    url: str = result(..., "File, folder, glob, s3:// URL, or a built-in such as stdlib:", min_length=1)
    name: str | None = result(
        None,
        "Name in the index and the metrics; by default the built-in's, or corpus, corpus-2, …",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) == 1 and None in value.values():
            value = f"{next(iter(value))}:"  # YAML reads `stdlib:` as a key without a value
        return {"url": value} if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        return without_secret(value)


class DataConfig(Section):
    """From text to token shards."""

    corpus: list[Corpus] = result([Corpus(url="stdlib:")], "The texts to train on", min_length=1)
    tokenizer: str = result(
        "",
        "A tiktoken encoding's name (gpt2 needs no network), or a folder, URL or hf:NAME of a Hugging Face tokenizer; "
        "empty is that of the weights to start from, or gpt2",
    )
    validation: float = result(
        0.1, "Share of the documents kept for validation, chosen by a hash of their text", "fraction", ge=0, lt=1
    )
    text_field: str = result(
        "text", "Field of .jsonl lines and column of .parquet files that holds the text", min_length=1
    )
    errors: Literal["strict", "replace", "skip"] = result(
        "strict",
        "Text that is not UTF-8: stop and name it, replace the bytes, or skip the document and count it",
    )
    on_error: Literal["stop", "skip"] = result(
        "stop", "A JSONL line or Parquet row that cannot be read: stop and name it, or skip it and count and list it"
    )
    drop_duplicates: bool = result(
        False, "Leave out exact copies of documents, over all corpora; the smallest document id stays"
    )
    min_bytes: int = result(0, "Shortest document kept, UTF-8, before nfc", "bytes", ge=0)
    max_bytes: int = result(0, "Longest document kept, UTF-8, before nfc; 0 is any", "bytes", ge=0)
    nfc: bool = result(False, "Bring all text into Unicode's composed normal form, NFC")
    shard_megabytes: int = result(
        16,
        "Source text a shard holds, roughly; a file over an eighth of it has its own, a larger one is cut into ranges",
        "MB",
        ge=1,
        le=4096,
    )
    workers: int = operational(0, "Processes that tokenize; 0 is one per core", "processes", ge=0, le=4096)

    @field_validator("tokenizer")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        return without_secret(value)

    @model_validator(mode="after")
    def _lengths_meet(self) -> DataConfig:
        if self.max_bytes and self.max_bytes < self.min_bytes:
            raise ValueError(
                f"max_bytes {self.max_bytes} is less than min_bytes {self.min_bytes}: nothing would be kept"
            )
        return self
