"""Runs in the tools' Python: an OpenEngine server over google.protobuf that does what TensorRT-LLM's is said to do.

Its engine answers with the prompt's own ids and an end of sequence after them. It is told things on standard input, one
JSON object a line, and says what happens on standard output in the same way:

- {"set": {name: value}} changes the fields of `Settings`;
- {"next": {"status": [code, details]}} lets the next Generate fail, {"next": {"events": [...]}} answer so and end,
  with "hold": true wait to be aborted or left instead of ending;
- {"kv": [...]} goes out on all KV subscriptions, {"kv_end": true} ends them.
"""

import asyncio
import base64
import importlib.resources
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, struct_pb2
from google.protobuf.internal import api_implementation
from grpc_tools import protoc

assert api_implementation.Type() == "upb", "this Python has no C implementation of protobuf"
PROTO = Path(__file__).with_name("openengine_v0_1_0.proto")
MESSAGE_BYTES = 64 << 20
MAX_STOPS = 64
MAX_PROMPT_LOGPROBS = 1_000_000
STARTING, READY, DEGRADED, NOT_READY = 1, 2, 3, 4
STOP, LENGTH, CANCELLED = 1, 2, 3
INVALID_ARGUMENT, OVERLOADED, INTERNAL = 1, 5, 11
LOWEST_LOGPROB = -9999.0


def load_messages() -> Any:
    """A function from a message's name to its class."""
    with tempfile.NamedTemporaryFile() as file:
        include = importlib.resources.files(grpc_tools) / "_proto"
        assert (
            protoc.main(["", f"-I{PROTO.parent}", f"-I{include}", f"--descriptor_set_out={file.name}", str(PROTO)]) == 0
        )
        (description,) = descriptor_pb2.FileDescriptorSet.FromString(Path(file.name).read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(description)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"openengine.v1.{name}"))


message_class = load_messages()
GenerateResponse = message_class("GenerateResponse")


class Unsupported(ValueError):
    """What TensorRT-LLM has nothing for."""


@dataclass
class Settings:
    """What a test may change."""

    model: str = "gateway-demo"
    eos: int = 2
    max_seq_len: int = 4096
    step_seconds: float = 0.0
    tokens_per_step: int = 1
    guides: list[str] = field(
        default_factory=lambda: ["json_schema", "regex", "ebnf_grammar", "structural_tag", "json_object"]
    )
    supports_priority: bool = False
    supports_lora: bool = False
    supports_multimodal: bool = False
    supports_stop_in_output: bool = True
    loras: list[str] = field(default_factory=list)
    dp_size: int = 1
    targets_ranks: bool = False
    has_connector: bool = False
    role: int = 0
    minimum_client_revision: int = 1
    takes_token_ids: bool = True
    health: int = READY
    health_message: str = "engine health check failed"
    load: dict[str, Any] | None = field(default_factory=dict)
    unimplemented: list[str] = field(default_factory=lambda: ["ListLoras", "SubscribeKvEvents"])


class Server:
    """The two services and what they share."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.next: dict[str, Any] = {}
        self.active: dict[str, asyncio.Event] = {}
        self.subscribers: set[asyncio.Queue[dict[str, Any] | None]] = set()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        def unary(name: str, request: str, method: Any) -> grpc.RpcMethodHandler:
            async def guarded(message: Any, context: Any) -> Any:
                await self.refuse_unimplemented(name, context)
                return await method(message, context)

            return grpc.unary_unary_rpc_method_handler(
                guarded, message_class(request).FromString, lambda reply: reply.SerializeToString()
            )

        def stream(request: str, method: Any) -> grpc.RpcMethodHandler:
            return grpc.unary_stream_rpc_method_handler(
                method, message_class(request).FromString, lambda reply: reply.SerializeToString()
            )

        control = {
            "GetServerInfo": unary("GetServerInfo", "GetServerInfoRequest", self.server_info),
            "GetModelInfo": unary("GetModelInfo", "GetModelInfoRequest", self.model_info),
            "GetLoad": unary("GetLoad", "GetLoadRequest", self.load),
            "Health": unary("Health", "HealthRequest", self.health),
            "Abort": unary("Abort", "AbortRequest", self.abort),
            "ListLoras": unary("ListLoras", "ListLorasRequest", self.list_loras),
            "SubscribeKvEvents": stream("SubscribeKvEventsRequest", self.subscribe),
        }
        generate = {"Generate": stream("GenerateRequest", self.generate)}
        return [
            grpc.method_handlers_generic_handler("openengine.v1.Control", control),
            grpc.method_handlers_generic_handler("openengine.v1.Inference", generate),
        ]

    async def refuse_unimplemented(self, name: str, context: Any) -> None:
        if name in self.settings.unimplemented:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not implemented")

    # --- Control ----------------------------------------------------------------------------------------------------

    async def server_info(self, _request: Any, _context: Any) -> Any:
        settings = self.settings
        info = message_class("ServerInfo")(
            engine_name="tensorrt_llm",
            engine_version="1.4.0rc1",
            engine_role=settings.role,
            supported_models=[settings.model],
            schema_revision=1,
            minimum_client_revision=settings.minimum_client_revision,
        )
        info.parallelism.data_parallel_size = settings.dp_size
        info.capacity.kv_block_size = 32
        info.capacity.max_running_requests = 256
        info.extra.update({"trtllm_supports_dp_rank_targeting": settings.targets_ranks})
        if settings.has_connector:
            info.kv_connector.enabled = True
            info.kv_connector.transfer_backend = "UCX"
        return info

    async def model_info(self, request: Any, context: Any) -> Any:
        if not request.model:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "model must be non-empty")
        settings = self.settings
        info = message_class("ModelInfo")(
            model_id=settings.model,
            served_model_name=settings.model,
            max_context_length=settings.max_seq_len,
            supports_text_input=True,
            supports_token_ids_input=settings.takes_token_ids,
            supports_lora=settings.supports_lora,
            supports_multimodal=settings.supports_multimodal,
        )
        generation = info.generation
        for logprobs in (generation.output_logprobs, generation.prompt_logprobs):
            logprobs.supported = True
            logprobs.max_top_n = 20
        modes = {"json_schema": 1, "regex": 2, "ebnf_grammar": 3, "structural_tag": 4, "json_object": 6}
        generation.guided_decoding.supported = bool(settings.guides)
        generation.guided_decoding.modes.extend(modes[guide] for guide in settings.guides)
        generation.supports_priority = settings.supports_priority
        generation.supports_stop_in_output = settings.supports_stop_in_output
        generation.supports_cache_salt = True
        generation.supports_prefix_cache_bypass = False
        return info

    async def load(self, request: Any, context: Any) -> Any:
        if self.settings.load is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "KV occupancy sample is stale while requests are active")
        load = json_format.ParseDict(self.settings.load, message_class("LoadInfo")())
        load.running_requests = len(self.active)
        if not request.include_per_rank:
            del load.ranks[:]
        return load

    async def health(self, _request: Any, _context: Any) -> Any:
        response = message_class("HealthResponse")(state=self.settings.health)
        response.checks.add(name="grpc", state=READY, message="serving")
        response.checks.add(name="model", state=self.settings.health, message=self.settings.health_message)
        return response

    async def abort(self, request: Any, context: Any) -> Any:
        if request.WhichOneof("target") != "request_id":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "AbortRequest has no target set")
        aborted = self.active.get(request.request_id)
        say(event="abort", id=request.request_id, found=aborted is not None)
        if aborted is not None:
            aborted.set()
        return message_class("AbortResponse")(status=2 if aborted is None else 1)

    async def list_loras(self, _request: Any, _context: Any) -> Any:
        response = message_class("ListLorasResponse")()
        for number, name in enumerate(self.settings.loras, 1):
            response.adapters.add(lora_id=number, lora_name=name, source_path=f"/loras/{name}")
        return response

    async def subscribe(self, request: Any, context: Any) -> Any:
        await self.refuse_unimplemented("SubscribeKvEvents", context)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.subscribers.add(queue)
        say(event="subscribed", request=json_format.MessageToDict(request, preserving_proto_field_name=True))
        try:
            while (response := await queue.get()) is not None:
                yield json_format.ParseDict(response, message_class("SubscribeKvEventsResponse")())
        finally:
            self.subscribers.discard(queue)

    # --- Inference --------------------------------------------------------------------------------------------------

    async def generate(self, request: Any, context: Any) -> Any:
        metadata = {key: value for key, value in context.invocation_metadata() if key.startswith("openengine-")}
        described = json_format.MessageToDict(request, preserving_proto_field_name=True)
        prompt = described.get("token_ids", {})
        prompt["ids"] = prompt.get("ids", [])[:64]  # a test that wants to see long ones asks in another way
        say(event="request", request=described, metadata=metadata, prompt_tokens=len(request.token_ids.ids))
        planned, self.next = self.next, {}
        if "status" in planned:
            code, details = planned["status"]
            await context.abort(grpc.StatusCode[code], details)
        try:
            self.check(request, metadata)
        except Unsupported as error:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if request.request_id in self.active:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"request_id '{request.request_id}' is already active")
        aborted = self.active[request.request_id] = asyncio.Event()
        how = "left"
        try:
            events = self.planned(planned, aborted) if planned else self.answer(request, aborted)
            async for response in events:
                response.request_id = request.request_id
                yield response
            how = "aborted" if aborted.is_set() else "done"
        finally:
            del self.active[request.request_id]
            say(event="ended", id=request.request_id, how=how)

    async def planned(self, planned: dict[str, Any], aborted: asyncio.Event) -> Any:
        for event in planned["events"]:
            yield json_format.ParseDict(event, GenerateResponse())
        if planned.get("hold"):
            await aborted.wait()
            yield finished(CANCELLED)

    def check(self, request: Any, metadata: dict[str, str]) -> None:
        """What TensorRT-LLM refuses before it accepts a request."""
        settings = self.settings
        if not request.request_id or not request.model:
            raise ValueError("request_id and model must be non-empty")
        if request.media and not settings.supports_multimodal:
            raise Unsupported("multimodal media is not supported")
        if request.lora_name and not settings.supports_lora:
            raise Unsupported("LoRA selection is not supported")
        if request.kv.bypass_prefix_cache:
            raise Unsupported("prefix cache bypass is not supported")
        if request.WhichOneof("input") is None:
            raise ValueError("exactly one of prompt or token_ids must be set")
        if "openengine-priority" in metadata and not settings.supports_priority:
            raise Unsupported("gRPC metadata key 'openengine-priority' is not supported")
        rank = int(metadata.get("openengine-target-dp-rank", 0))
        if rank >= settings.dp_size:
            raise ValueError(f"openengine-target-dp-rank must be in [0, {settings.dp_size}), got {rank}")
        guide = request.guided.WhichOneof("guide")
        if guide is not None and guide not in settings.guides:
            raise Unsupported(f"guided decoding mode '{guide}' is not supported by the grammar backend")
        if len(request.stopping.conditions) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stopping conditions are supported")
        if any(each.WhichOneof("condition") is None for each in request.stopping.conditions):
            raise ValueError("each stopping condition must set exactly one condition")
        if not 0 <= request.sampling.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={request.sampling.top_p}")
        kind = request.extra.fields["request_type"].string_value if "request_type" in request.extra.fields else ""
        if kind not in ("", "context_only", "context_and_generation"):
            raise ValueError("extra.request_type must be one of context_only, context_and_generation")
        if request.kv.HasField("session"):
            check_session(request.kv.session)

    async def answer(self, request: Any, aborted: asyncio.Event) -> Any:
        prompt = [*request.token_ids.ids]
        problem = self.problem(request, prompt)
        if problem:
            yield problem
            return
        if request.response.return_prompt_logprobs:
            top_n = request.response.prompt_candidates.top_n
            infos = [{"token_id": prompt[0]}, *(token_info(token_id, top_n) for token_id in prompt[1:])]
            yield json_format.ParseDict({"prompt": {"tokens": infos}}, GenerateResponse())
        async for response in self.steps(request, prompt, aborted):
            yield response

    def problem(self, request: Any, prompt: list[int]) -> Any:
        """What goes wrong only once a request has been accepted."""
        if len(prompt) >= self.settings.max_seq_len:
            return failure(
                INTERNAL,
                f"The sum of prompt length ({len(prompt)}), query length (0) should not exceed "
                f"max_num_tokens ({self.settings.max_seq_len})",
            )
        entries = len(prompt) * max(1, request.response.prompt_candidates.top_n)
        if request.response.return_prompt_logprobs and entries > MAX_PROMPT_LOGPROBS:
            return failure(INVALID_ARGUMENT, f"prompt logprobs would produce {entries} entries")
        return None

    async def steps(self, request: Any, prompt: list[int], aborted: asyncio.Event) -> Any:
        """Deltas as the engine's steps bring them, and the end."""
        engine = Engine(request, prompt, self.settings.eos)
        sent = 0
        is_prefill = request.extra.fields["request_type"].string_value == "context_only"
        while True:
            await asyncio.sleep(self.settings.step_seconds)
            reason = CANCELLED if aborted.is_set() else engine.step(1 if is_prefill else self.settings.tokens_per_step)
            safe = len(engine.token_ids) - (0 if reason else engine.held_back)
            if safe > sent:
                yield engine.tokens(sent, safe)
                sent = safe
            if is_prefill and reason is None:
                yield prefill_ready(request, engine)
                return
            if reason is not None:
                yield finished(reason, engine)
                return


class Engine:
    """One answer: the prompt once more."""

    def __init__(self, request: Any, prompt: list[int], eos: int) -> None:
        stopping = request.stopping
        self.request = request
        self.prompt = prompt
        self.eos = eos
        self.stops = {each.stop_token_id for each in stopping.conditions if each.HasField("stop_token_id")}
        self.max_tokens = stopping.max_tokens if stopping.HasField("max_tokens") else 1 << 31
        self.keeps_stop = stopping.include_stop_in_output
        # Like the real one, so that stop tokens need not be taken back.
        self.held_back = 1 if self.stops and not self.keeps_stop else 0
        self.token_ids: list[int] = []
        self.stop_match: dict[str, int] | None = None
        self.text = "" if "detokenize" in request.extra.fields else "text"
        self.is_decode = request.kv.HasField("session")

    def step(self, count: int) -> int | None:
        """Write on; the reason when this was the end."""
        for _ in range(count):
            token_id = self.prompt[len(self.token_ids)] if len(self.token_ids) < len(self.prompt) else self.eos
            self.token_ids.append(token_id)
            if token_id == self.eos and not self.request.stopping.ignore_eos:
                self.stop_match = {"eos_token_id": token_id}
                return STOP
            if len(self.token_ids) >= self.max_tokens:
                return LENGTH
            if token_id in self.stops and len(self.token_ids) > self.request.stopping.min_tokens:
                self.stop_match = {"stop_token_id": token_id}
                if not self.keeps_stop:
                    self.token_ids.pop()
                return STOP
        return None

    def tokens(self, start: int, end: int) -> Any:
        logprobs = self.request.response.return_output_logprobs
        top_n = self.request.response.output_candidates.top_n
        infos = [token_info(each, top_n) if logprobs else {"token_id": each} for each in self.token_ids[start:end]]
        return json_format.ParseDict(
            {"token": {"output_index": 0, "tokens": infos, "text": self.text}}, GenerateResponse()
        )

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": len(self.prompt),
            "completion_tokens": len(self.token_ids),
            "total_tokens": len(self.prompt) + len(self.token_ids),
            "cached_prompt_tokens": len(self.prompt) // 2,
        }


def token_info(token_id: int, top_n: int) -> dict[str, Any]:
    """A logprob that tells the token; the candidates out of order and one too many, the last the lowest there is."""
    best = [{"token_id": token_id + rank, "logprob": logprob_of(rank), "rank": rank + 1} for rank in range(top_n + 1)]
    best[-1]["logprob"] = LOWEST_LOGPROB
    return {"token_id": token_id, "token": "t", "logprob": -0.25, "rank": 1, "candidates": best[::-1] if top_n else []}


def logprob_of(rank: int) -> float:
    return -0.25 - rank


def finished(reason: int, engine: "Engine | None" = None, message: str = "") -> Any:
    event: dict[str, Any] = {"finished": {"output_index": 0, "reason": reason, "message": message}}
    if engine is not None:
        event["usage"] = engine.usage()
        if engine.stop_match is not None:
            event["finished"]["stop_match"] = engine.stop_match
    return json_format.ParseDict(event, GenerateResponse())


def failure(code: int, message: str) -> Any:
    return json_format.ParseDict({"error": {"code": code, "message": message, "retryable": False}}, GenerateResponse())


def prefill_ready(request: Any, engine: Engine) -> Any:
    attributes = {
        "ctx_info_endpoint": "tcp://10.0.0.1:5555",
        "opaque_state": base64.b64encode(b"\0opaque\xff").decode(),
        "first_gen_tokens": engine.token_ids[:1],
        "disagg_request_id": str((1 << 60) + 1),
        "ctx_dp_rank": 0,
    }
    response = GenerateResponse()
    session = response.prefill_ready.kv_session
    session.session_id = "77"
    session.transfer_backend = "UCX"
    session.endpoints.add(host="10.0.0.1", port=5555, protocol="tcp")
    session.attributes_struct.update(attributes)
    json_format.ParseDict(engine.usage(), response.usage)
    return response


def check_session(session: Any) -> None:
    attributes = json_format.MessageToDict(session.attributes_struct)
    if not session.session_id.isdecimal():
        raise ValueError("kv.session.session_id must be an integer context request id")
    if not attributes.get("ctx_info_endpoint") and not attributes.get("opaque_state"):
        raise ValueError("kv.session carries neither a ctx_info_endpoint nor an opaque_state")
    assert base64.b64decode(attributes["opaque_state"]) == b"\0opaque\xff", "the handoff must arrive as it was"
    assert session.endpoints[0].host == "10.0.0.1", "also what the gateway knows nothing of"


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def obey(server: Server) -> None:
    """Read commands until standard input ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        for name, value in command.get("set", {}).items():
            assert hasattr(server.settings, name), name
            setattr(server.settings, name, value)
        server.next = command.get("next", server.next)
        for queue in server.subscribers:
            for response in command.get("kv", []):
                queue.put_nowait(response)
            if command.get("kv_end"):
                queue.put_nowait(None)
        say(event="obeyed")


async def main() -> None:
    server = Server()
    front = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        )
    )
    for handler in server.handlers():
        front.add_generic_rpc_handlers((handler,))
    port = front.add_insecure_port(f"127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else 0}")
    await front.start()
    say(event="listening", address=f"127.0.0.1:{port}")
    await obey(server)
    await front.stop(0)


asyncio.run(main())
