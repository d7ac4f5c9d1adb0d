"""Encoders against the library's plain encode: the ids are the same, whatever way they came about."""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.tokenizer.cache import TokenCache
from gateway.tokenizer.encoder import Encoder, Share
from gateway.tokenizer.structure import Structure
from tests.tokenizer.kinds import MAKERS, MARKERS, make

PROVEN = "segments cuts pieces"
SHORTCUTS = {
    "GPT-2": PROVEN,
    "GPT-2, prefix space": "segments cuts",
    "GPT-4": PROVEN,
    "o200k": PROVEN,
    "DeepSeek": PROVEN,
    "NFKC": "segments cuts",
    "Unigram": "segments cuts",
    "Unigram, first": "",
    "Llama 2": "segments",
    "WordPiece": "segments cuts",
    "rstrip": PROVEN,
    "lstrip": "",
    "single word": "",
}
WORDS = [
    *MARKERS, "<|odd|>", "<think>", "<thi", "<|star", "|>", "The", " gateway", " numbers", "text", "it's", "I'LL", "'ſ",
    "ABC", "def", "123456", "7", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\v", "\x85", "\xa0", "\u3000", "\u2028",
    ".", ",", "...", "():", "{", "}", "/", "é", "e\u0301", "\u0301", "ß", "Ǆ", "ﬁ", "½", "٣", "字", "网关", "です",
    "한글", "🦊", "👩🏽‍🚀", "𝔘", "\x00", "\x01", "\ufeff", "\ufffd", "\u200b", "▁", "Ġ", "<0x41>", "##", "<unk>",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=60).map("".join)
LONG = {
    "without a break": "x" * 300_000,
    "without a space": "The,gateway;turns" * 6_000,
    "spaces": " " * 60_000,
    "line breaks": "\n" * 20_000 + "\r\n" * 20_000,
    "words": "The gateway turns text into numbers. " * 4_000,
    "code": "def function(argument):\n    return argument + 1\n\n\n" * 1_000,
    "Chinese": "网关把文字变成数字，再把数字变回文字。" * 2_000,
    "emoji": "🦊 and 👩🏽‍🚀" * 3_000,
    "markers": "<|start|>user\nwords, words<|end|>\n" * 2_000,
    "marks": "e\u0301\u0301 " * 10_000,
}


@cache
def structure_of(kind: str) -> Structure:
    return Structure(make(kind))


def encoder_of(
    kind: str, cache: TokenCache | None, share: Share | None = None, chunk_characters: int = 2048
) -> Encoder:
    return Encoder(make(kind), structure_of(kind), cache, share, chunk_characters)


def plain(kind: str, text: str) -> list[int]:
    (encoding,) = make(kind).encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def ids_by(encoder: Encoder, text: str) -> list[int]:
    return memoryview(encoder.encode(text).token_ids).cast("I").tolist()


def in_threads[Item, Result](function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    with ThreadPoolExecutor(3) as threads:
        return list(threads.map(function, items))


@pytest.fixture(scope="module", params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def encoders(kind: str) -> list[Encoder]:
    """Without a cache, with one that forgets nothing, and with one that has room for little. Tiny chunks."""
    caches = [None, TokenCache(1 << 24), TokenCache(6000)]
    return [encoder_of(kind, cache, chunk_characters=2) for cache in caches]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
@example(texts=["<|end|>x<|end|>xx<|", "a <|odd|> \u2003b<|odd|>", "<think><thi<think>"])
@example(texts=["'ſ it'ſ IT'LL", " \n \n\nx", "x \n", "a\u0301 ﬁ ½²"])
def test_cached_and_cut_encodes_are_the_plain_one(kind: str, encoders: list[Encoder], texts: list[str]) -> None:
    for encoder in encoders:
        for text in [*texts, "".join(texts), *texts]:
            assert ids_by(encoder, text) == plain(kind, text)


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_texts_too_on_several_threads(kind: str, text: str) -> None:
    if len(text) > 200_000 and "pieces" not in SHORTCUTS[kind]:
        text = text[:20_000]  # some models take the square of a word's length
    encoder = encoder_of(kind, TokenCache(1 << 24), in_threads)

    for _ in range(3):
        assert ids_by(encoder, text) == plain(kind, text)


def test_a_shortcut_is_taken_only_where_it_is_proven(kind: str) -> None:
    report = structure_of(kind).report()

    assert " ".join(name for name, finding in report.items() if finding == "proven") == SHORTCUTS[kind], report


def test_a_conversation_that_grows_is_known_but_for_its_newest_turn() -> None:
    encoder = encoder_of("GPT-4", TokenCache(1 << 24))
    turns = [f"<|start|>user {number}\n{'words of this turn. ' * 500}<|end|>" for number in range(6)]

    encoder.encode(turns[0])
    for count in range(1, len(turns)):
        encoded = encoder.encode("".join(turns[: count + 1]))
        new = len(plain("GPT-4", turns[count]))
        assert encoded.known_tokens >= len(encoded.token_ids) // 4 - new - 2


def test_a_passage_is_known_wherever_it_stands() -> None:
    encoder = encoder_of("GPT-4", TokenCache(1 << 24), chunk_characters=200)
    passage = " ".join(f"{number} words {'and more ' * (number % 7)}of text" for number in range(2000))
    encoder.encode(passage)

    encoded = encoder.encode("Something else stands before it now, and then: " + passage)

    assert encoded.known_tokens > 0.9 * len(encoded.token_ids) / 4


def test_a_prompt_that_comes_again_is_known_as_a_whole() -> None:
    encoder = encoder_of("GPT-4", TokenCache(1 << 24))
    text = "<|start|>a<|end|>b"

    assert [encoder.encode(text).outcome for _ in range(3)] == ["miss", "part", "hit"]


def test_a_model_with_dropout_is_not_cached() -> None:
    tokenizer = make("GPT-4").from_str(make("GPT-4").to_str())
    tokenizer.model.dropout = 0.5

    assert Encoder(tokenizer, Structure(tokenizer), TokenCache(1 << 20)).encode("a").outcome == "off"


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["GPT-4", "NFKC"])
def test_many_threads_and_little_room_give_no_wrong_ids(kind: str, duration: float) -> None:
    cache = TokenCache(100_000)
    encoder = encoder_of(kind, cache, chunk_characters=50)
    texts = [
        f"<|start|>{number} text {'and numbers, ' * (number % 40)}<|end|>" * (number % 5 + 1) for number in range(400)
    ]
    expected = [plain(kind, text) for text in texts]
    is_over = threading.Event()
    wrong: list[str] = []

    def hammer(seed: int) -> None:
        generator = random.Random(seed)
        while not is_over.is_set():
            number = generator.randrange(len(texts))
            if ids_by(encoder, texts[number]) != expected[number]:
                wrong.append(texts[number])

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(1, 13)]
    for thread in threads:
        thread.start()
    is_over.wait(duration)
    is_over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.bytes <= cache.budget
    assert sum(cache.evictions_by_level()) > 0
    assert sum(shard.recount() for shard in cache.shards) == cache.bytes
