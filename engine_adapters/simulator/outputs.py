"""What the simulator answers: readable text, the prompt itself, random ids, or what a script says.

Of the sampling fields, temperature 0 and the seed choose the answer, and text and random output honour a logit_bias of
-100 and below (the token never comes), of 100 and above (no other comes), and bad_token_ids; a weaker bias, top_p,
top_k, min_p, the penalties and the rest are accepted and change nothing.
"""

import hashlib
import itertools
import random
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from engine_adapters.base import Sampling, Submission
from engine_adapters.simulator.run import Plan
from engine_adapters.simulator.script import read_script
from engine_adapters.tokenizer_file import TokenizerFile

TEXTS = Path(__file__).parent / "texts"
RANDOM_LENGTH = 4096
"""Random output begins again after this many ids."""

PlanFor = Callable[[Submission, int], Plan]
"""(what was asked, the index of the answer) -> what this answer says"""


class TextOutput:
    """One of the shipped texts, chosen by the prompt (and seed and index, unless the temperature is 0)."""

    def __init__(self, tokenizer: TokenizerFile, eos_token_ids: Sequence[int]) -> None:
        ending = one_by_one(eos_token_ids[:1])
        self._eos_token_ids = frozenset(eos_token_ids)
        texts = [path.read_text(encoding="utf-8").strip() for path in sorted(TEXTS.glob("*.txt"))]
        self._endless = [one_by_one(tokenizer.ids_for_text(text + "\n\n")) for text in texts]
        self._ended = [one_by_one(tokenizer.ids_for_text(text)) + ending for text in texts]

    def __call__(self, submission: Submission, index: int) -> Plan:
        forced, banned = biases(submission.sampling)
        if forced:
            return Plan(one_by_one(forced), repeats=True)
        is_endless = submission.ignore_eos or not banned.isdisjoint(self._eos_token_ids)
        texts = self._endless if is_endless else self._ended
        return Plan(without(banned, texts[answer_seed(submission, index) % len(texts)]), repeats=is_endless)


class EchoOutput:
    """The prompt once more, without the end-of-sequence ids in it (a chat prompt has some), then the end."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = eos_token_ids

    def __call__(self, submission: Submission, index: int) -> Plan:
        token_ids = array("I", submission.token_ids)
        if submission.ignore_eos:
            return Plan(one_by_one(token_ids), repeats=True)
        said = [token_id for token_id in token_ids if token_id not in self._eos_token_ids]
        return Plan(one_by_one([*said, *self._eos_token_ids[:1]]))


class RandomOutput:
    """Ids drawn from the vocabulary without its added tokens, the same for the same prompt; it never ends by itself."""

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self._token_ids = sorted(tokenizer.tokens.keys() - tokenizer.added_ids)

    def __call__(self, submission: Submission, index: int) -> Plan:
        forced, banned = biases(submission.sampling)
        if forced:
            return Plan(one_by_one(forced), repeats=True)
        length = min(submission.max_tokens, RANDOM_LENGTH)
        drawn = random.Random(answer_seed(submission, index)).choices(self._token_ids, k=length)
        return Plan(without(banned, one_by_one(drawn)), repeats=True)


def one_by_one(token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [(token_id,) for token_id in token_ids]


def biases(sampling: Sampling) -> tuple[list[int], frozenset[int]]:
    """(the one token that may come, if there is such a one; the tokens that never come)"""
    forced = [token_id for token_id, bias in sampling.logit_bias if bias >= 100]
    banned = frozenset(token_id for token_id, bias in sampling.logit_bias if bias <= -100)
    return forced[:1], banned.union(array("I", sampling.bad_token_ids))


def without(banned: frozenset[int], steps: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
    """Steps of one token, without the banned ones; some other token when nothing is left."""
    if not banned:
        return steps
    allowed = [step for step in steps if banned.isdisjoint(step)]
    return allowed or one_by_one([next(token_id for token_id in itertools.count() if token_id not in banned)])


def answer_seed(submission: Submission, index: int) -> int:
    """The same number for the same prompt, seed and index, in any process; greedy answers differ in their prompts only.

    One index after the other gives one number after the other.
    """
    sampling = submission.sampling
    is_greedy = sampling.temperature == 0
    salt = b"" if is_greedy or sampling.seed is None else sampling.seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(submission.token_ids, digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "little") + (0 if is_greedy else index)


def plan_maker(output: str, tokenizer: TokenizerFile, eos_token_ids: Sequence[int]) -> PlanFor:
    """What `--output` names: text, echo, random or script:FILE. Raises ValueError, or ScriptError for a bad script."""
    kind, _, rest = output.partition(":")
    if kind == "script" and rest:
        return read_script(Path(rest), tokenizer, eos_token_ids, TextOutput(tokenizer, eos_token_ids))
    makers: dict[str, Callable[[], PlanFor]] = {
        "text": lambda: TextOutput(tokenizer, eos_token_ids),
        "echo": lambda: EchoOutput(eos_token_ids),
        "random": lambda: RandomOutput(tokenizer),
    }
    if output not in makers:
        raise ValueError(f"{output!r} is none of text, echo, random, script:FILE")
    return makers[output]()
