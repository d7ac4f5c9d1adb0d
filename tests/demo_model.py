"""The demo model's tokenizer, straight from the library: what the gateway's texts are compared with."""

from pathlib import Path

import tokenizers

from tests.processes import ROOT

FOLDER: Path = ROOT / "engine_adapters/simulator/model"
TOKENIZER: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
VOCAB_SIZE: int = TOKENIZER.get_vocab_size(with_added_tokens=True)
CONTEXT_LENGTH = 32768
END_OF_TURN: int = TOKENIZER.token_to_id("<|im_end|>")
END_OF_TEXT: int = TOKENIZER.token_to_id("<|endoftext|>")


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def text_of(token_ids: list[int]) -> str:
    text: str = TOKENIZER.decode(token_ids, skip_special_tokens=True)
    return text


def prompt_of(content: str) -> list[int]:
    """The ids of a conversation with one user message."""
    return ids_of(f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")


def echo_of(content: str) -> list[int]:
    """What an executor in echo mode answers to that, before its end of sequence."""
    return [token_id for token_id in prompt_of(content) if token_id not in (END_OF_TURN, END_OF_TEXT)]
