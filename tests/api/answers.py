"""What a fake executor says to submits that ask for several answers or for logprobs."""

from array import array

from engine_adapters.base import FinishReason
from engine_adapters.step import messages
from tests.demo_model import TOKENIZER, ids_of
from tests.executor import FakeExecutor, column, frame_of

Scores = list[tuple[float, list[tuple[int, float]]]]
"""For each token its logprob and its alternatives, best first."""


def prompt_text(token_ids: list[int]) -> str:
    """The text of a prompt, special tokens included."""
    text: str = TOKENIZER.decode(token_ids, skip_special_tokens=False)
    return text


def prompt_of(submit: messages.Submit) -> str:
    """The text of its prompt."""
    return prompt_text(array("I", submit.token_ids).tolist())


def answer(executor: FakeExecutor, submit: messages.Submit, *texts: str) -> None:
    """A whole answer for each of the submit's streams, in one frame."""
    executor.send(frame_of({submit.stream_id + index: ids_of(text) for index, text in enumerate(texts)}))
    for index in range(len(texts)):
        end(executor, submit, index)


def say(executor: FakeExecutor, submit: messages.Submit, index: int, text: str) -> None:
    """More of one of the answers."""
    executor.send(frame_of({submit.stream_id + index: ids_of(text)}))


def end(
    executor: FakeExecutor,
    submit: messages.Submit,
    index: int = 0,
    reason: FinishReason = FinishReason.STOP,
    error: str = "",
    prompt_logprobs: Scores | None = None,
) -> None:
    """The end of one of the answers."""
    finished = messages.Finished(stream_id=submit.stream_id + index, reason=reason.value, error=error)
    if prompt_logprobs is not None:
        finished.prompt_logprobs = scores_of(0, prompt_logprobs)
    executor.send(messages.StepFrame(finished=[finished]))


def say_scored(executor: FakeExecutor, submit: messages.Submit, index: int, tokens: list[int], scores: Scores) -> None:
    """More of one of the answers, with logprobs."""
    frame = frame_of({submit.stream_id + index: tokens})
    frame.logprobs.append(scores_of(submit.stream_id + index, scores))
    executor.send(frame)


def scores_of(stream_id: int, scores: Scores) -> messages.TokenLogprobs:
    alternatives = [alternative for _, alternatives in scores for alternative in alternatives]
    return messages.TokenLogprobs(
        stream_id=stream_id,
        logprobs=array("f", [logprob for logprob, _ in scores]).tobytes(),
        top_counts=column(len(alternatives) for _, alternatives in scores),
        top_token_ids=column(token_id for token_id, _ in alternatives),
        top_logprobs=array("f", [logprob for _, logprob in alternatives]).tobytes(),
    )
