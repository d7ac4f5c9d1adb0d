"""An independent TrtllmService from the published `smg-grpc-proto`, over an engine that says what it is told to.

It behaves as the servicer of TensorRT-LLM is documented to behave, its bugs included. Run by the tools' Python, as a
process: a line of JSON on standard input is a new Plan, lines of JSON on standard output tell what happens.
"""

import asyncio
import dataclasses
import json
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from smg_grpc_proto.generated import trtllm_service_pb2 as pb
from smg_grpc_proto.generated import trtllm_service_pb2_grpc as pb_grpc

MESSAGE_LIMIT = 32 << 20


class RequestError(RuntimeError):
    """What the engine raises of a request it cannot serve."""


@dataclass
class Plan:
    """What the engine does with the requests that come from now on."""

    steps: list[list[list[int]]] = field(default_factory=list)
    """For each sequence the new ids of each step; without any, 100, 101 and so on, one a step."""
    step_seconds: float = 0.0
    eos: int = 2
    knows_stop_ids: bool = True
    """Servers of before March 2026 do not."""
    hangs_at: int = -1
    """From this step on nothing comes any more."""
    fails_at: int = -1
    failure: str = "the engine broke"
    fails_silently_at: int = -1
    """The error is kept where the servicer does not look."""
    old_error: dict[str, Any] | None = None
    """Of servers that tell of errors in a message."""
    reason: str = ""
    """Instead of the true finish reason."""
    lacks_sampled: bool = False
    """The engine's logprobs do not tell of the token that was sampled."""
    refusals: int = 0
    """So many calls are cancelled before they have begun, as gRPC does when too many wait."""
    has_begun: bool = True
    """An Abort finds a request only once this is so."""
    health: str = "OK"
    lacks: list[str] = field(default_factory=list)
    """Methods that are not there."""
    max_seq_len: int = 1000
    vocab_size: int = 500
    max_num_tokens: int = 800


def tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)  # noqa: T201


@dataclass
class Sequence:
    index: int
    ids: list[int] = field(default_factory=list)
    reason: str = ""
    matched: int | str | None = None


class Request:
    """One request in the engine, as `LLM.generate_async` runs it."""

    def __init__(self, request: Any, plan: Plan) -> None:
        self.request, self.plan = request, plan
        self.prompt = list(request.tokenized.input_token_ids)
        self.sequences = [Sequence(index) for index in range(request.sampling_config.num_return_sequences or 1)]
        self.max_tokens = min(request.max_tokens, plan.max_seq_len - len(self.prompt))
        self.is_finished = False
        self.is_aborted = False
        self.changed = asyncio.Event()

    def check(self) -> None:
        request, sampling, plan = self.request, self.request.sampling_config, self.plan
        if len(self.sequences) > 1 and sampling.temperature == 0:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns, but n > 1 was given")
        if not 0 <= sampling.top_p <= 1 or sampling.temperature < 0:
            raise ValueError("require 0 <= top_p <= 1 and temperature >= 0")
        if request.embedding_bias and len(request.embedding_bias) != plan.vocab_size:
            got = len(request.embedding_bias)
            raise ValueError(f"embedding_bias length ({got}) must match vocab_size ({plan.vocab_size})")
        if len(self.prompt) > plan.max_num_tokens:
            raise RequestError(
                f"The sum of prompt length ({len(self.prompt)}), query length (0) should not exceed max_num_tokens "
                f"({plan.max_num_tokens})"
            )
        if request.max_tokens <= 0 or len(self.prompt) >= plan.max_seq_len:
            raise RequestError(f"max_tokens must be at least 1 within max_seq_len ({plan.max_seq_len})")

    async def __aiter__(self) -> Any:
        self.check()
        step = 0
        while not self.is_finished:
            if step == self.plan.fails_at:
                raise RuntimeError(self.plan.failure)
            if step == self.plan.hangs_at and not self.is_aborted:
                await self.changed.wait()
            await asyncio.sleep(self.plan.step_seconds)
            if self.is_aborted or step == self.plan.fails_silently_at:
                self.finish("cancelled" if self.is_aborted else "")
            else:
                self.advance(step)
            step += 1
            yield self

    def advance(self, step: int) -> None:
        for sequence in self.sequences:
            if not sequence.reason:
                self.say(sequence, self.next_ids(sequence, step))
        if all(sequence.reason for sequence in self.sequences):
            # Reasons are set by the response that finishes the whole request; who ended before has none.
            self.is_finished = True
            for sequence in self.sequences:
                if sequence.reason.startswith("early"):
                    sequence.reason = ""
                elif self.plan.reason:
                    sequence.reason = self.plan.reason
        else:
            for sequence in self.sequences:
                if sequence.reason:
                    sequence.reason = "early"

    def next_ids(self, sequence: Sequence, step: int) -> list[int]:
        if not self.plan.steps:
            return [100 + step]
        steps = self.plan.steps[sequence.index % len(self.plan.steps)]
        return steps[step] if step < len(steps) else [99]

    def say(self, sequence: Sequence, ids: list[int]) -> None:
        """The sampler's order: the model's end, which stays among the ids, then the limit, then stop words."""
        for token in ids:
            sequence.ids.append(token)
            if token == self.plan.eos and not self.request.ignore_eos:
                sequence.reason = "stop"
            elif len(sequence.ids) >= self.max_tokens:
                sequence.reason = "length"
            else:
                self.look_for_stops(sequence)
            if sequence.reason:
                return

    def look_for_stops(self, sequence: Sequence) -> None:
        words: list[tuple[Any, list[int]]] = [(stop, [ord(each) for each in stop]) for stop in self.request.stop]
        if self.plan.knows_stop_ids:
            words += [(stop, [stop]) for stop in self.request.stop_token_ids]
        for stop, word in words:
            if sequence.ids[-len(word) :] == word:
                sequence.reason, sequence.matched = "stop", stop
                if not self.request.include_stop_token_in_output:
                    del sequence.ids[-len(word) :]
                return

    def finish(self, reason: str) -> None:
        self.is_finished = True
        for sequence in self.sequences:
            sequence.reason = reason

    def abort(self) -> None:
        self.is_aborted = True
        self.changed.set()


class Servicer(pb_grpc.TrtllmServiceServicer):
    def __init__(self) -> None:
        self.plan = Plan()
        self.requests: dict[str, Request] = {}

    async def Generate(self, request: Any, context: Any) -> Any:
        name = request.request_id
        tell(event="generate", request=MessageToDict(request, preserving_proto_field_name=True))
        running = Request(request, self.plan)
        if self.plan.old_error is not None:
            # Field 4 is none of the published messages any more: it goes out as an unknown one.
            yield old_error(name, self.plan.old_error)
            return
        if self.plan.refusals:
            self.plan.refusals -= 1
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        try:
            if not request.HasField("tokenized"):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Missing tokenized input")
            if self.plan.has_begun:
                self.requests[name] = running
            sent: dict[int, int] = {}
            async for result in running:
                if request.streaming:
                    for chunk in self.chunks(result, sent):
                        yield chunk
                if result.is_finished:
                    for complete in self.completes(result):
                        yield complete
        except (asyncio.CancelledError, GeneratorExit):  # the latter while a message is being written
            running.abort()
            tell(event="aborted", by="cancel", request_id=name)
            raise
        except grpc.aio.AbortError:
            raise
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        finally:
            self.requests.pop(name, None)
            tell(event="ended", request_id=name)

    def chunks(self, result: Request, sent: dict[int, int]) -> Any:
        """What is new, by counting: what has been stripped since is not taken back."""
        for sequence in result.sequences:
            new = sequence.ids[sent.get(sequence.index, 0) :]
            if new:
                sent[sequence.index] = len(sequence.ids)
                chunk = pb.GenerateStreamChunk(
                    token_ids=new,
                    sequence_index=sequence.index,
                    prompt_tokens=len(result.prompt),
                    completion_tokens=len(sequence.ids),
                    cached_tokens=7,
                    logprobs=self.logprobs(result, new),
                )
                yield pb.GenerateResponse(request_id=result.request.request_id, chunk=chunk)

    def completes(self, result: Request) -> Any:
        for sequence in result.sequences:
            complete = pb.GenerateComplete(
                output_token_ids=sequence.ids,
                sequence_index=sequence.index,
                finish_reason=sequence.reason,
                prompt_tokens=len(result.prompt),
                completion_tokens=len(sequence.ids),
                cached_tokens=7,
                logprobs=self.logprobs(result, sequence.ids),
                prompt_logprobs=self.prompt_logprobs(result),
            )
            if isinstance(sequence.matched, int):
                complete.matched_token_id = sequence.matched
            elif sequence.matched is not None:
                complete.matched_stop_str = sequence.matched
            yield pb.GenerateResponse(request_id=result.request.request_id, complete=complete)

    def logprobs(self, result: Request, ids: list[int]) -> Any:
        """All that the engine tells, the best last: as many as were asked for and the sampled token beside them."""
        output = result.request.output_config
        if not output.HasField("logprobs"):
            return []
        return [self.entry(token, token, output.logprobs, self.plan.lacks_sampled) for token in ids]

    def prompt_logprobs(self, result: Request) -> Any:
        """What belongs to the next token stands beside each."""
        output = result.request.output_config
        if not output.HasField("prompt_logprobs"):
            return []
        pairs = zip(result.prompt, [*result.prompt[1:], 100], strict=True)
        return [self.entry(token, after, output.prompt_logprobs, False) for token, after in pairs]

    def entry(self, token: int, sampled: int, count: int, lacks_sampled: bool) -> Any:
        known = {300 + place: -1.0 - place for place in reversed(range(count))}
        if not lacks_sampled:
            known = {sampled: -0.5 * (sampled % 7 + 1), **known}
        tops = [pb.TopLogprob(token_id=each, logprob=logprob) for each, logprob in known.items()]
        return pb.TokenLogprob(token_id=token, logprob=known.get(token, 0.0), top_logprobs=tops)

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        tell(event="health")
        return pb.HealthCheckResponse(status=self.plan.health)

    async def Abort(self, request: Any, context: Any) -> Any:
        name = request.request_id
        running = self.requests.pop(name, None)
        if running is not None:
            running.abort()
        tell(event="aborted" if running else "not found", by="Abort", request_id=name)
        found = "aborted" if running else "not found"
        return pb.AbortResponse(success=running is not None, message=f"Request {name} {found}")

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        await self.refuse_what_it_lacks("GetModelInfo", context)
        plan = self.plan
        return pb.GetModelInfoResponse(model_id="demo", max_seq_len=plan.max_seq_len, vocab_size=plan.vocab_size)

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        await self.refuse_what_it_lacks("GetServerInfo", context)
        return pb.GetServerInfoResponse(version="1.3.0rc24", backend="tensorrt-llm", world_size=1)

    async def refuse_what_it_lacks(self, method: str, context: Any) -> None:
        if method in self.plan.lacks:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} not implemented")


def old_error(name: str, error: dict[str, Any]) -> Any:
    text, kind = error["message"].encode(), error["type"].encode()
    code = int(error["code"])
    inner = b"\x0a%c%b\x12%c%b\x18%c%c" % (len(text), text, len(kind), kind, code & 0x7F | 0x80, code >> 7)
    message = pb.GenerateResponse(request_id=name)
    message.MergeFromString(b"\x22%c%b" % (len(inner), inner))
    return message


async def main() -> None:
    servicer = Servicer()
    # As in tensorrt_llm/grpc/smg/server.py.
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            ("grpc.max_receive_message_length", MESSAGE_LIMIT),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        )
    )
    pb_grpc.add_TrtllmServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop, is_over = asyncio.get_running_loop(), asyncio.Event()

    def follow() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(obey, json.loads(line))
        loop.call_soon_threadsafe(is_over.set)

    def obey(plan: dict[str, Any]) -> None:
        servicer.plan = Plan(**plan)
        tell(event="plan", plan=dataclasses.asdict(servicer.plan))

    threading.Thread(target=follow, daemon=True).start()
    tell(event="serving", address=f"127.0.0.1:{port}")
    await is_over.wait()


if __name__ == "__main__":
    asyncio.run(main())
