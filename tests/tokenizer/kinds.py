"""Small tokenizers of every kind that is in use, trained here in a moment."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O_200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
CORPUS = [
    "The gateway turns text into numbers, and numbers back into text. It's what they'll do, don't they?\n\n",
    "Größe, Übung und süße Früchte; où est l'élève?  Two  spaces.\n\tA tab, 123456 numbers.\r\n",
    "网关把文字变成数字 です 게이트웨이 🦊 and more text of the same kind, (with) [brackets] {and} <angles>.",
    "def function(argument):\n    return argument + 1  # a comment\n\n\nclass Name:\n    pass\n",
]
MARKERS = ["<|start|>", "<|end|>", "<|end|>x", "<|"]


def byte_level(*patterns: str, use_regex: bool = False, prefix_space: bool = False) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    tokenizer.add_tokens([AddedToken("<think>", normalized=True)])
    return tokenizer


def nfkc() -> tokenizers.Tokenizer:
    """As Claude's first ones."""
    tokenizer = byte_level(use_regex=True)
    content = json.loads(tokenizer.to_str())
    content["normalizer"] = {"type": "NFKC"}
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["normalized"]]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def sentence_piece(scheme: str = "always", split: bool = True) -> tokenizers.Tokenizer:
    """Unigram, as in T5 and Gemma 1."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", *MARKERS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama_2() -> tokenizers.Tokenizer:
    """Words marked by a normalizer, no pre-tokenizer, byte tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", *MARKERS, *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=5,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:2], trainer)
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    """As in BERT, uncased."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", *MARKERS], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def with_tokens(**options: Any) -> tokenizers.Tokenizer:
    """Added tokens that look at what stands around them."""
    tokenizer = byte_level(GPT_4)
    tokenizer.add_special_tokens([AddedToken("<|odd|>", normalized=False, **options)])
    return tokenizer


MAKERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "GPT-2": lambda: byte_level(use_regex=True),
    "GPT-2, prefix space": lambda: byte_level(use_regex=True, prefix_space=True),
    "GPT-4": lambda: byte_level(GPT_4),
    "o200k": lambda: byte_level(O_200K),
    "DeepSeek": lambda: byte_level(*DEEPSEEK),
    "NFKC": nfkc,
    "Unigram": sentence_piece,
    "Unigram, first": lambda: sentence_piece("first"),
    "Llama 2": llama_2,
    "WordPiece": word_piece,
    "rstrip": lambda: with_tokens(rstrip=True),
    "lstrip": lambda: with_tokens(lstrip=True),
    "single word": lambda: with_tokens(single_word=True),
}


@cache
def make(kind: str) -> tokenizers.Tokenizer:
    return MAKERS[kind]()
