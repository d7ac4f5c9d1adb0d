"""Byte-pair vocabularies that are no tokenizer.json (tiktoken, Mistral's tekken, GPT-2's pair of files), made into a
`tokenizers.Tokenizer` with the same ids.

tiktoken merges the neighbours whose joint token has the lowest rank. Listing for each token, in order of ranks, every
pair of tokens that make it up gives the library the same rule; tests/tokenizer/test_tokenizer_files.py compares ids
with those of tiktoken and mistral-common.
"""

import base64
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine_adapters.tokenizer_file import BYTE_LEVEL, TokenizerFileError, read_json, read_json_if_there

CHARACTER = {byte: character for character, byte in BYTE_LEVEL.items()}
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
NOT_HAN = r"&&[^\p{Han}]"
PUNCTUATION_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + PUNCTUATION_AND_SPACES
KIMI = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}{NOT_HAN}]*[{LOWER}{NOT_HAN}]+{CONTRACTIONS}?",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}{NOT_HAN}]+[{LOWER}{NOT_HAN}]*{CONTRACTIONS}?",
        r"\p{N}{1,3}",
        PUNCTUATION_AND_SPACES,
    )
)
PATTERNS: dict[str, tuple[str, bool]] = {
    "QWenTokenizer": (QWEN, True),
    "Qwen2Tokenizer": (QWEN, True),
    "Qwen2TokenizerFast": (QWEN, True),
    "TikTokenTokenizer": (KIMI, False),
}
"""By `tokenizer_class`: how text is split, which these files don't say, and whether it is put into NFC first."""
TEKKEN_NAMES = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()
"""The special tokens of tekken files that list none."""
RESERVED = 256
"""Kimi's ids for special tokens, behind its vocabulary."""


def load_tiktoken(path: Path) -> Tokenizer:
    """A file with a token in base64 and its rank on each line."""
    ranks = {}
    for line in path.read_bytes().splitlines():
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    pattern, nfc = pattern_of(path.parent)
    config = read_json_if_there(path.parent / "tokenizer_config.json")
    added = {int(token_id): token for token_id, token in (config.get("added_tokens_decoder") or {}).items()}
    specials = {token["content"]: token_id for token_id, token in added.items()}
    if config.get("tokenizer_class") == "TikTokenTokenizer":
        reserved = range(len(ranks), len(ranks) + RESERVED)
        specials |= {f"<|reserved_token_{number}|>": number for number in reserved if number not in added}
    elif config.get("tokenizer_class") == "QWenTokenizer" and not added:
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
        specials = {name: len(ranks) + number for number, name in enumerate(names)}
    plain = {token["content"] for token in added.values() if not token.get("special", True)}
    return byte_pairs(ranks, pattern, specials, nfc=nfc, plain=plain)


def load_tekken(path: Path) -> Tokenizer:
    content = read_json(path)
    config = content["config"]
    count = config["default_num_special_tokens"]
    listed = content.get("special_tokens") or ()
    names = {each["rank"]: each["token_str"] for each in listed} or dict(enumerate(TEKKEN_NAMES))
    specials = {names.get(number, f"<SPECIAL_{number}>"): number for number in range(count)}
    vocabulary = content["vocab"][: config["default_vocab_size"] - count]
    ranks = {base64.b64decode(each["token_bytes"]): each["rank"] + count for each in vocabulary}
    return byte_pairs(ranks, config["pattern"], specials)


def load_vocabulary_and_merges(path: Path) -> Tokenizer:
    """GPT-2's vocab.json, with merges.txt beside it."""
    merges = [
        tuple(line.split(" "))
        for line in (path.parent / "merges.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#version")
    ]
    config = read_json_if_there(path.parent / "tokenizer_config.json")
    added = {int(number): token for number, token in (config.get("added_tokens_decoder") or {}).items()}
    tokenizer = Tokenizer(models.BPE({token: int(number) for token, number in read_json(path).items()}, merges))
    if str(config.get("tokenizer_class", "")).startswith("GPT2"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        pattern, nfc = pattern_of(path.parent)
        split(tokenizer, pattern, nfc)
    add_tokens(tokenizer, {token["content"]: number for number, token in added.items()}, added)
    return tokenizer


def pattern_of(folder: Path) -> tuple[str, bool]:
    name = read_json_if_there(folder / "tokenizer_config.json").get("tokenizer_class")
    if name not in PATTERNS:
        raise TokenizerFileError(
            f"{folder} has no tokenizer.json, and its tokenizer_class {name!r} does not say how text is split "
            f"(known: {', '.join(PATTERNS)}); write a tokenizer.json with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return PATTERNS[name]


def byte_pairs(
    ranks: Mapping[bytes, int],
    pattern: str,
    specials: Mapping[str, int],
    *,
    nfc: bool = False,
    plain: set[str] | frozenset[str] = frozenset(),
) -> Tokenizer:
    """`specials` are added tokens by their ids, marked special unless they are `plain`."""
    spelled = {token: "".join(map(CHARACTER.__getitem__, token)) for token in ranks}
    merges = [
        (spelled[token[:cut]], spelled[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in sorted(cuts(token, ranks), key=lambda cut: (ranks[token[:cut]], ranks[token[cut:]]))
    ]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | dict(specials)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    split(tokenizer, pattern, nfc)
    add_tokens(tokenizer, specials, {specials[name]: {"content": name, "special": False} for name in plain})
    return tokenizer


def cuts(token: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Where it may be cut into two tokens."""
    return [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]


def split(tokenizer: Tokenizer, pattern: str, nfc: bool) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()


def add_tokens(tokenizer: Tokenizer, specials: Mapping[str, int], settings: Mapping[int, dict[str, Any]]) -> None:
    """In the order of their ids; raises TokenizerFileError when one would get another id."""
    ordered = sorted(specials.items(), key=lambda each: each[1])
    tokens = [added_token(name, settings.get(token_id, {})) for name, token_id in ordered]
    for is_special, group in groupby(tokens, lambda token: bool(token.special)):
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([*group])
    for name, token_id in ordered:
        if tokenizer.token_to_id(name) != token_id:
            raise TokenizerFileError(
                f"the added token {name!r} has id {token_id} in tokenizer_config.json, which leaves a gap behind the "
                "vocabulary; write a tokenizer.json with transformers"
            )


def added_token(name: str, settings: Mapping[str, Any]) -> AddedToken:
    flags = {flag: settings[flag] for flag in ("lstrip", "rstrip", "single_word") if flag in settings}
    return AddedToken(name, normalized=False, special=settings.get("special", True), **flags)


def is_tiktoken(path: Path) -> bool:
    """Whether a file named *.model is one in tiktoken's format, not SentencePiece's."""
    with path.open("rb") as file:
        first = file.readline(200).split()
    try:
        return len(first) == 2 and bool(base64.b64decode(first[0], validate=True)) and first[1].isdigit()
    except ValueError:
        return False
