"""A model's special tokens: the names templates know them by, and those a tokenizer puts around any text."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from engine_adapters.tokenizer_file import read_json_if_there

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """`names` are the variables of chat templates. `prefix` and `suffix` are little-endian u32 ids, mostly a BOS."""

    names: Mapping[str, str]
    prefix: bytes = b""
    suffix: bytes = b""

    def around(self, token_ids: bytes) -> bytes:
        """`token_ids` with prefix and suffix, where the text has not brought them already."""
        before = b"" if self.prefix and token_ids.startswith(self.prefix) else self.prefix
        after = b"" if self.suffix and token_ids.endswith(self.suffix) else self.suffix
        return before + token_ids + after if before or after else token_ids


def read_special_tokens(folder: Path, tokenizer: tokenizers.Tokenizer) -> SpecialTokens:
    """Of a folder's tokenizer_config.json and special_tokens_map.json; raises TokenizerFileError.

    The tokenizer's post-processor decides what goes around a text, as in transformers 5. Where it adds nothing but the
    config says `add_bos_token`, the BOS is added all the same: transformers 4 did so, and DeepSeek's folders mean it.
    """
    config = read_json_if_there(folder / "tokenizer_config.json")
    names = read_names(folder, config)
    prefix, suffix = added_by(tokenizer)
    if not prefix and not suffix and config.get("add_bos_token") is True:
        prefix = added_id(tokenizer, names.get("bos_token"))
    return SpecialTokens(names, prefix, suffix)


def read_names(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    # Folders whose config lists the added tokens have all in it; the map is older.
    is_complete = "added_tokens_decoder" in config
    older = {} if is_complete else read_json_if_there(folder / "special_tokens_map.json")
    texts = {name: text_of(older.get(name)) or text_of(config.get(name)) for name in NAMES}
    return {name: text for name, text in texts.items() if text is not None}


def text_of(token: Any) -> str | None:
    """A token given as its text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def added_id(tokenizer: tokenizers.Tokenizer, token: str | None) -> bytes:
    token_id = None if token is None else tokenizer.token_to_id(token)
    return b"" if token_id is None else array("I", [token_id]).tobytes()


def added_by(tokenizer: tokenizers.Tokenizer) -> tuple[bytes, bytes]:
    """What its post-processor puts before and behind a text."""
    if tokenizer.num_special_tokens_to_add(False) == 0:
        return b"", b""
    plain: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return array("I", whole[:start]).tobytes(), array("I", whole[start + len(plain) :]).tobytes()
    return b"", b""
