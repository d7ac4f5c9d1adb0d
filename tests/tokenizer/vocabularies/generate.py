"""Trains the small vocabularies of this folder and has the libraries that own their formats encode every text.

    python -m venv /tmp/hf && /tmp/hf/bin/pip install sentencepiece tiktoken mistral-common
    /tmp/hf/bin/python tests/tokenizer/vocabularies/generate.py

Nothing of the gateway is used here.
"""

import base64
import json
import sys
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
import tiktoken
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from texts import TEKKEN, TEXTS, tekken_content  # noqa: E402

CORPUS = Path(__file__).parents[3] / "engine_adapters/simulator/texts"
SIZE = 700
SENTENCEPIECE = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False},
    "whole": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["<mask>", "\n\n"]},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "unigram": {"model_type": "unigram", "byte_fallback": True},
}
HAN, NOT_HAN = r"[\p{Han}]+", r"&&[^\p{Han}]"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KIMI = (
    rf"{HAN}|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}{NOT_HAN}]*[{LOWER}{NOT_HAN}]+{ENDS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}{NOT_HAN}]+[{LOWER}{NOT_HAN}]*{ENDS}?|\p{{N}}{{1,3}}|{SPACES}"
)
QWEN = rf"{ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{SPACES}"


def main() -> None:
    corpus = "\n".join(path.read_text("utf-8") for path in sorted(CORPUS.glob("*.txt")))
    expected = {}
    for name, options in SENTENCEPIECE.items():
        train_sentencepiece(name, corpus, options)
        model = sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"{name}.model"))
        expected[name] = [model.encode(text) for text in TEXTS]
    ranks = train_byte_pairs(corpus)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (HERE / "byte_pairs.tiktoken").write_text("".join(lines))
    for name, pattern, nfc in (("kimi", KIMI, False), ("qwen", QWEN, True)):
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        texts = [unicodedata.normalize("NFC", text) if nfc else text for text in TEXTS]
        expected[name] = [encoding.encode(text, disallowed_special=()) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tekken.json"
        path.write_text(json.dumps(tekken_content(ranks, TEKKEN)))
        tekken = Tekkenizer.from_file(str(path))
    expected["tekken"] = [tekken.encode(text, bos=False, eos=False) for text in TEXTS]
    (HERE / "ids.json").write_text(json.dumps(expected, separators=(",", ":")).replace("]],", "]],\n") + "\n")


def train_sentencepiece(name: str, corpus: str, options: dict[str, object]) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()),
        model_prefix=str(HERE / name),
        vocab_size=SIZE,
        hard_vocab_limit=False,
        character_coverage=0.98,
        normalization_rule_name="identity",
        minloglevel=3,
        **options,
    )
    (HERE / f"{name}.vocab").unlink()


def train_byte_pairs(corpus: str) -> dict[bytes, int]:
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in word.encode()] for word in corpus.replace(" ", "\0 ").split("\0")]
    while len(ranks) < SIZE:
        pairs: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        words = [merged(word, best) for word in words]
    return ranks


def merged(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    result: list[bytes] = []
    for token in word:
        if result and (result[-1], token) == pair:
            result[-1] += token
        else:
            result.append(token)
    return result


if __name__ == "__main__":
    main()
