"""Tests of what the simulator answers."""

import json
from array import array
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from engine_adapters.base import FinishReason, Sampling, Submission
from engine_adapters.simulator.outputs import TEXTS, plan_maker
from engine_adapters.simulator.rank import Capacity
from engine_adapters.simulator.run import Plan
from engine_adapters.simulator.scheduler import Costs, Scheduler
from engine_adapters.simulator.script import ScriptError
from engine_adapters.tokenizer_file import TokenizerFile, read_eos_token_ids

MODEL = TEXTS.parent / "model"
TOKENIZER = TokenizerFile(MODEL)
EOS_TOKEN_IDS = read_eos_token_ids(MODEL)
EOS = EOS_TOKEN_IDS[0]
ALL_TEXTS = {path.read_text(encoding="utf-8").strip() for path in TEXTS.glob("*.txt")}


def ask(prompt: str, max_tokens: int = 100, ignore_eos: bool = False, **sampling: Any) -> Submission:
    token_ids = array("I", TOKENIZER.ids_for_text(prompt)).tobytes()
    return Submission("r", token_ids, max_tokens, Sampling(**sampling), ignore_eos=ignore_eos)


def make(output: str) -> Any:
    plan_for = plan_maker(output, TOKENIZER, EOS_TOKEN_IDS)
    return lambda submission, index=0: plan_for(submission, index)


def ids(plan: Plan) -> list[int]:
    return [*chain.from_iterable(plan.steps)]


def script(folder: Path, *rules: Any) -> Any:
    path = folder / "script.json"
    path.write_text(json.dumps(rules), encoding="utf-8")
    return make(f"script:{path}")


def played(plan: Plan, max_tokens: int = 100) -> tuple[list[tuple[float, list[int]]], FinishReason | None]:
    """(milliseconds, tokens) of each step at no cost but the plan's delays, and how it ends if it does."""
    scheduler: Scheduler[str] = Scheduler(
        lambda _submission, _index: plan, Costs(1e9, 0, 0), Capacity(), frozenset(EOS_TOKEN_IDS)
    )
    scheduler.submit(["a"], ask("x", max_tokens))
    now = 0.0
    said: list[tuple[float, list[int]]] = []
    while True:
        end = scheduler.begin_step(now)
        if end is None:
            resumes = scheduler.next_ready_at()
            if resumes is None:
                return said, None
            now = resumes
            continue
        now = end
        for _, token_ids, finish in scheduler.end_step():
            said.append((round(now * 1000), [*token_ids]))
            if finish is not None:
                return said, finish.reason


def test_text_is_a_whole_shipped_text_and_then_the_end() -> None:
    text = make("text")
    plans = [text(ask(f"question {number}")) for number in range(200)]
    assert {TOKENIZER.text_of(ids(plan)[:-1]) for plan in plans} == ALL_TEXTS
    assert {(ids(plan)[-1], plan.repeats) for plan in plans} == {(EOS, False)}
    assert {len(step) for plan in plans for step in plan.steps} == {1}


def test_text_depends_on_the_prompt_and_unless_greedy_on_the_seed() -> None:
    text = make("text")
    by_seed = [ids(text(ask("hello", temperature=0.7, seed=seed))) for seed in (*range(-20, 20), 3)]
    assert len({tuple(answer) for answer in by_seed}) > 5
    assert by_seed[-1] == by_seed[23]
    greedy = [ids(text(ask("hello", temperature=0.0, seed=seed))) for seed in range(40)]
    assert all(answer == ids(text(ask("hello"))) for answer in greedy)


def test_the_answers_to_one_prompt_are_different_texts_unless_they_are_greedy() -> None:
    text = make("text")
    assert len({tuple(ids(text(ask("hello"), index))) for index in range(len(ALL_TEXTS))}) == len(ALL_TEXTS)
    assert len({tuple(ids(text(ask("hello", temperature=0), index))) for index in range(5)}) == 1
    drawn = [ids(make("random")(ask("hello"), index))[:20] for index in (0, 1, 1)]
    assert drawn[0] != drawn[1] == drawn[2]


@pytest.mark.parametrize("output", ["text", "random"])
def test_a_bias_of_100_lets_no_other_token_come_and_one_of_minus_100_none_of_its_own(output: str) -> None:
    answer = make(output)
    said = ids(answer(ask("hello")))
    banned = {*said[:50:7]} - {EOS}
    plan = answer(ask("hello", logit_bias=tuple((token_id, -100.0) for token_id in banned)))
    assert ids(plan) == [token_id for token_id in said if token_id not in banned]
    assert played(answer(ask("hello", logit_bias=((5, 3.0), (7, 100.0)))), 3)[0] == [(0, [7]), (0, [7]), (0, [7])]
    assert ids(answer(ask("hello", logit_bias=((5, 3.0), (6, -99.0))))) == said


def test_with_the_end_of_sequence_banned_a_text_goes_on() -> None:
    plan = make("text")(ask("hello", logit_bias=((EOS, -100.0),)))
    assert plan.repeats and EOS not in ids(plan)


def test_when_all_that_would_come_is_banned_something_else_comes() -> None:
    answer = make("text")
    everything = {*range(TOKENIZER.vocab_size)} - {4000}
    assert ids(answer(ask("hello", logit_bias=tuple((token_id, -100.0) for token_id in everything)))) == [4000]


def test_text_without_an_end_of_sequence_repeats() -> None:
    plan = make("text")(ask("hello", ignore_eos=True))
    assert plan.repeats and EOS not in ids(plan)
    assert TOKENIZER.text_of(ids(plan)).strip() in ALL_TEXTS


def test_echo_is_the_prompt_and_the_end() -> None:
    echo = make("echo")
    assert ids(echo(ask("hello there"))) == [*TOKENIZER.ids_for_text("hello there"), EOS]
    turn = array("I", [5, EOS, 6, EOS_TOKEN_IDS[1], 7])
    assert ids(echo(Submission("r", turn.tobytes(), 9))) == [5, 6, 7, EOS]
    endless = echo(Submission("r", turn.tobytes(), 9, ignore_eos=True))
    assert ids(endless) == turn.tolist() and endless.repeats


def test_random_output_is_the_same_for_a_prompt_and_never_an_added_token() -> None:
    plan = make("random")(ask("hello", max_tokens=3000))
    assert ids(plan) == ids(make("random")(ask("hello", max_tokens=3000)))
    assert ids(plan)[:50] != ids(make("random")(ask("hullo", max_tokens=3000)))[:50]
    assert len({*ids(plan)}) > 1000 and TOKENIZER.added_ids.isdisjoint(ids(plan)) and plan.repeats


def test_an_output_nobody_knows_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match="'verse' is none of text, echo, random, script:FILE"):
        make("verse")


def test_a_scripts_first_rule_that_fits_answers(tmp_path: Path) -> None:
    scripted = script(
        tmp_path,
        {"prompt": TOKENIZER.ids_for_text("exactly this"), "steps": [1]},
        {"contains": "weather", "steps": [2]},
        {"contains": "<|im_start|>", "steps": [3]},
        {"steps": [4]},
    )
    marked = Submission("r", array("I", [TOKENIZER.ids["<|im_start|>"]]).tobytes(), 9)
    prompts = [ask("exactly this"), ask("exactly this weather"), marked, ask("else")]
    assert [ids(scripted(prompt))[0] for prompt in prompts] == [1, 2, 3, 4]


def test_a_prompt_no_rule_fits_gets_text(tmp_path: Path) -> None:
    scripted = script(tmp_path, {"contains": "weather", "steps": [2]})
    assert ids(scripted(ask("hello"))) == ids(make("text")(ask("hello")))


def test_a_script_says_what_comes_in_each_step_and_when(tmp_path: Path) -> None:
    call = TOKENIZER.ids["<tool_call>"]
    steps = [
        7,
        [8, "<tool_call>", 9],
        {"tokens": [1, 2], "delay_ms": 250},
        "<tool_call>",
        {"tokens": 3, "delay_ms": 40},
    ]
    said, reason = played(script(tmp_path, {"steps": steps})(ask("hello")))
    assert said == [(0, [7]), (0, [8, call, 9]), (250, [1, 2]), (250, [call]), (290, [3]), (290, [])]
    assert reason is FinishReason.STOP


def test_a_scripted_text_comes_one_token_a_step(tmp_path: Path) -> None:
    plan = script(tmp_path, {"steps": "Good morning, everyone."})(ask("hello"))
    assert [*plan.steps] == [(token_id,) for token_id in [*TOKENIZER.ids_for_text("Good morning, everyone."), EOS]]


@pytest.mark.parametrize(
    ("finish", "steps", "said", "reason"),
    [
        ("eos", [1, 2], [[1], [2], []], FinishReason.STOP),
        ("eos_at_once", [1, 2], [[1], [2]], FinishReason.STOP),
        ("eos", [1, [2, EOS]], [[1], [2]], FinishReason.STOP),
        ("eos", [], [[]], FinishReason.STOP),
        ("stop", [1, 2], [[1], [2]], FinishReason.STOP),
        ("length", [1, 2], [[1], [2]], FinishReason.LENGTH),
        ("error", [1, 2], [[1], [2]], FinishReason.ERROR),
        ("repeat", [1, 2], [[1], [2], [1], [2], [1]], FinishReason.LENGTH),
        ("hang", [1, 2], [[1], [2]], None),
        ("hang", [], [], None),
    ],
)
def test_a_script_says_how_it_ends(
    tmp_path: Path, finish: str, steps: list[Any], said: list[list[int]], reason: FinishReason | None
) -> None:
    plan = script(tmp_path, {"steps": steps, "finish": finish})(ask("hello"))
    told, end = played(plan, max_tokens=5)
    assert ([token_ids for _, token_ids in told], end) == (said, reason)


def test_a_scripted_end_of_sequence_is_left_out_where_it_is_ignored(tmp_path: Path) -> None:
    scripted = script(tmp_path, {"steps": [1, 2]})
    assert ids(scripted(ask("hello", ignore_eos=True))) == [1, 2]
    assert ids(scripted(ask("hello"))) == [1, 2, EOS]


def test_a_scripted_error_carries_its_text(tmp_path: Path) -> None:
    rule = {"steps": [], "finish": "error", "error": "out of memory", "retryable": True}
    plan = script(tmp_path, rule)(ask("hello"))
    assert (plan.reason, plan.error, plan.retryable) == (FinishReason.ERROR, "out of memory", True)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "cannot be read"),
        ('"text"', "no list of rules"),
        ('[{"steps": [1]}, {"stepps": []}]', "rule 2: unknown keys"),
        ('[{"steps": [1], "finish": "crash"}]', "rule 1: finish is 'crash'"),
        ('[{"steps": 7}]', "rule 1: steps must be a list or a string"),
        ('[{"steps": [-1]}]', "rule 1: -1 is no token id"),
        ('[{"steps": [null]}]', "rule 1: None is no token id"),
        ('["hello"]', "rule 1"),
    ],
)
def test_a_script_that_cannot_be_used_says_where_and_why(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ScriptError, match=fault) as caught:
        make(f"script:{path}")
    assert str(path) in str(caught.value)
