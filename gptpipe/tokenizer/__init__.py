"""Text to ids and back: tiktoken's encodings, and Hugging Face's byte-level tokenizers, read into the same form."""

from gptpipe.tokenizer.encoding import END_OF_TEXT, GPT2_PATTERN, QWEN_PATTERN, AddedToken, Tokenizer
from gptpipe.tokenizer.gpt2 import gpt2_files
from gptpipe.tokenizer.references import get_tokenizer, is_own, reference_to, tokenizer_in

__all__ = [
    "END_OF_TEXT",
    "GPT2_PATTERN",
    "QWEN_PATTERN",
    "AddedToken",
    "Tokenizer",
    "get_tokenizer",
    "gpt2_files",
    "is_own",
    "reference_to",
    "tokenizer_in",
]
