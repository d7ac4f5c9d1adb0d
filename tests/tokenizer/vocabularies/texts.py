"""Texts that tell tokenizers apart. Without special tokens, which the formats' own libraries do not look for."""

import base64
from typing import Any

TEXTS = (
    "",
    " ",
    "a",
    "  a  b ",
    "Hello, world! don't DON'T I'LL we've",
    "naïve café Größe übermäßig ﬁ ① ２ Å é e\u0301 ÀÁÂ",
    "网关把文字变成数字 です 게이트웨이 日本語カタカナ混在text, 的the",
    "🦊🦊‍🔥 👩‍👩‍👧‍👦 \U0001f1e9\U0001f1ea",
    "1234567890 12 345 6,789.01",
    "\n\n\n  \n\t x\r\n\r\ny\n\nz <mask>",
    "   leading and trailing   ",
    "a\u2581b \u2581 \u2581\u2581x",
    "\u2581x",
    "\x00\x01\x7f\u200b\ufeff\u00a0\u2003",
    "ǅ ʰ ά العربية हिन्दी ไทย ﷺ",
    "x" * 99,
    " " * 33 + "y",
    "\t\t\tif x:\n\t\t\t\treturn y  # z/\n",
    "https://x.y/z?a=b&c=%20",
    "a" * 28 + " aa aaa aaaaa",
    "\u3000全角　スペース",
    "The gateway turns text into numbers, and numbers back into text. The lighthouse keeper wrote it down.",
    "Ein größerer Satz über 世界 und 🦊. Les élèves étudient; où est l'été?\n- one\n- two\n",
)


UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tekken_content(ranks: dict[bytes, int], pattern: str) -> dict[str, Any]:
    """A tekken.json of byte pairs, with 100 ids for special tokens."""
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in ranks.items()
    ]
    config = {
        "pattern": pattern,
        "num_vocab_tokens": len(ranks),
        "default_vocab_size": len(ranks) + 100,
        "default_num_special_tokens": 100,
        "version": "v3",
    }
    return {"config": config, "vocab": vocabulary}
