"""Scripted answers: exact token sequences with exact timing for given prompts.

A script is a JSON file, a list of rules (or an object whose "rules" is that list). The first rule that fits a prompt
answers it; a prompt that none fits gets the default text output.

    [
      {"contains": "weather", "steps": ["<tool_call>", "{\\"name\\": ", [1, 2, 3]], "finish": "eos"},
      {"prompt": [17, 4, 9], "steps": [{"tokens": [5, 6], "delay_ms": 250}, 7], "finish": "length"},
      {"contains": "crash", "steps": [], "finish": "error", "error": "out of memory", "retryable": true},
      {"steps": "This sentence answers everything else."}
    ]

Which prompts a rule fits (no key: all of them):
    prompt      the exact list of token ids
    contains    a piece of the prompt's decoded text, markers like <|im_start|> included

What it answers:
    steps       a list with one entry for each engine step, or one string for a text at one token a step. An entry is a
                token id, a list of ids and strings (several tokens in one step, as in speculative decoding), a string,
                or {"tokens": any of these, "delay_ms": engine time before this step}. A string that is a token of the
                vocabulary, added ones included, is that token; any other is cut up by longest match and comes in one
                step. Lone UTF-8 bytes and the like need their ids.
    finish      how it ends, after the last step (with it, where the engine needs no further token to know):
                eos         the model's end-of-sequence id, in a step of its own (the default; skipped when the steps
                            end with one already, and when the request ignores the end of sequence)
                eos_at_once the same id, in the last step
                stop, length, error, rejected   this reason, with the last step; a rejected prompt has no steps
                repeat      the steps begin again, until something else ends the stream
                hang        nothing more comes and the slot stays taken until the stream is aborted
    error       the text of an error or a rejection
    retryable   whether another executor may do better
"""

import json
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_adapters.base import FinishReason, Submission
from engine_adapters.simulator.run import Plan
from engine_adapters.tokenizer_file import TokenizerFile

REASONS = {
    "eos": FinishReason.STOP,
    "eos_at_once": FinishReason.STOP,
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "error": FinishReason.ERROR,
    "rejected": FinishReason.REJECTED,
    "repeat": FinishReason.STOP,
    "hang": FinishReason.STOP,
}
KEYS = {"prompt", "contains", "steps", "finish", "error", "retryable"}


class ScriptError(Exception):
    """A script that cannot be used; the message names the file and the rule."""


@dataclass(frozen=True)
class Rule:
    """Which prompts, and their answer where the end of sequence counts and where it is ignored."""

    prompt: "tuple[int, ...] | None"
    contains: "str | None"
    plan: Plan
    plan_ignoring_eos: Plan

    def fits(self, token_ids: Sequence[int], text: str) -> bool:
        if self.prompt is not None:
            return self.prompt == tuple(token_ids)
        return self.contains is None or self.contains in text


class ScriptOutput:
    """Answers by the first rule that fits, otherwise as `otherwise` does."""

    def __init__(
        self, rules: Sequence[Rule], tokenizer: TokenizerFile, otherwise: "Callable[[Submission, int], Plan]"
    ) -> None:
        self._rules = rules
        self._reads_text = any(rule.contains is not None for rule in rules)  # else a long prompt would cost its turn
        self._tokenizer = tokenizer
        self._otherwise = otherwise

    def __call__(self, submission: Submission, index: int) -> Plan:
        token_ids = array("I", submission.token_ids)
        text = self._tokenizer.text_of(token_ids) if self._reads_text else ""
        for rule in self._rules:
            if rule.fits(token_ids, text):
                return rule.plan_ignoring_eos if submission.ignore_eos else rule.plan
        return self._otherwise(submission, index)


def read_script(
    path: Path, tokenizer: TokenizerFile, eos_token_ids: Sequence[int], otherwise: "Callable[[Submission, int], Plan]"
) -> ScriptOutput:
    """Raises ScriptError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScriptError(f"{path}: cannot be read: {error}") from error
    rules = content.get("rules") if isinstance(content, dict) else content
    if not isinstance(rules, list):
        raise ScriptError(f"{path}: is no list of rules")
    reader = RuleReader(tokenizer, eos_token_ids)
    return ScriptOutput(
        [reader.read(rule, f"{path}: rule {number}") for number, rule in enumerate(rules, 1)], tokenizer, otherwise
    )


class RuleReader:
    """Turns a rule's JSON into plans."""

    def __init__(self, tokenizer: TokenizerFile, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids

    def read(self, rule: dict[str, Any], place: str) -> Rule:
        """Raises ScriptError, which says where."""
        try:
            return self._read(rule)
        except (ValueError, TypeError, AttributeError) as error:
            raise ScriptError(f"{place}: {error}") from error

    def _read(self, rule: dict[str, Any]) -> Rule:
        if unknown := rule.keys() - KEYS:
            raise ValueError(f"unknown keys {sorted(unknown)}; known are {sorted(KEYS)}")
        prompt = rule.get("prompt")
        finish = rule.get("finish", "eos")
        if finish not in REASONS:
            raise ValueError(f"finish is {finish!r}, none of {', '.join(REASONS)}")
        steps, delays = self._steps(rule.get("steps", []))
        return Rule(
            prompt=None if prompt is None else tuple(prompt),
            contains=rule.get("contains"),
            plan=self._plan(rule, finish, self._with_eos(steps, finish), delays),
            plan_ignoring_eos=self._plan(rule, finish, steps, delays),
        )

    def _plan(self, rule: dict[str, Any], finish: str, steps: list[tuple[int, ...]], delays: dict[int, float]) -> Plan:
        return Plan(
            steps=steps,
            delays=delays | {len(steps): math.inf} if finish == "hang" else delays,
            repeats=finish in ("repeat", "hang"),
            reason=REASONS[finish],
            error=rule.get("error", ""),
            retryable=rule.get("retryable", False),
        )

    def _with_eos(self, steps: list[tuple[int, ...]], finish: str) -> list[tuple[int, ...]]:
        eos = tuple(self._eos_token_ids[:1])
        has_eos = bool(steps and steps[-1] and steps[-1][-1] in self._eos_token_ids)
        if finish not in ("eos", "eos_at_once") or has_eos or not eos:
            return steps
        if finish == "eos_at_once" and steps:
            return [*steps[:-1], steps[-1] + eos]
        return [*steps, eos]

    def _steps(self, entries: object) -> tuple[list[tuple[int, ...]], dict[int, float]]:
        if isinstance(entries, str):
            return [(token_id,) for token_id in self._tokenizer.ids_for_text(entries)], {}
        if not isinstance(entries, list):
            raise TypeError("steps must be a list or a string")
        steps, delays = [], {}
        for index, entry in enumerate(entries):
            if isinstance(entry, dict):
                delays[index] = float(entry.get("delay_ms", 0)) / 1000
                entry = entry.get("tokens", [])
            steps.append(tuple(self._tokens(entry)))
        return steps, delays

    def _tokens(self, entry: object) -> list[int]:
        if isinstance(entry, list):
            return [token_id for part in entry for token_id in self._tokens(part)]
        if isinstance(entry, str):
            token_id = self._tokenizer.ids.get(entry)
            return self._tokenizer.ids_for_text(entry) if token_id is None else [token_id]
        if isinstance(entry, int) and 0 <= entry < 1 << 32:
            return [entry]
        raise ValueError(f"{entry!r} is no token id, text or list of these")
