"""Tests of images on the step stream: in the Submit, uploaded ahead of it, in shared memory, and what goes wrong."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest

from engine_adapters.base import EngineInfo, Finish, FinishReason, Submission
from engine_adapters.image import Image, MemoryFile, Tensor
from engine_adapters.images import keyed, problem_of, unexpanded
from engine_adapters.step import memory, messages, outgoing, payloads
from engine_adapters.step.payloads import NoRoom, PayloadMissing, Uploads
from engine_adapters.step.server import StepServer
from tests.adapters import test_step_client
from tests.adapters.test_step_client import attached
from tests.attach import u32

Run = Callable[[Coroutine[Any, Any, None]], None]
LARGE = Tensor("pixel_values", "float32", (5, 1 << 18))
SMALL = Tensor("image_grid_thw", "int64", (1, 3))


class Engine(test_step_client.FakeEngine):
    def info(self) -> EngineInfo:
        return replace(test_step_client.INFO, features=frozenset({"images.tensors", "images.encoded"}))

    async def images(self) -> tuple[Image, ...]:
        _, submission = await self.submitted.get()
        return submission.images


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One loop for all: grpc.aio delivers every loop's events through one queue, and minds when a loop closes."""
    with asyncio.Runner() as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 20))


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor is on another host."""
    monkeypatch.setattr(memory, "probe", lambda: None)


def image(*tensors: Tensor, number: int = 1, offset: int = 1, length: int = 2, shared: bool = False) -> Image:
    """An image of these tensors, whose payload is random."""
    size = sum(-(-tensor.nbytes // 64) * 64 for tensor in tensors)
    data = os.urandom(size)
    payload, file = memory.share(size) if shared else (memoryview(bytearray(size)), None)
    payload[:] = data
    return Image(bytes([number]) * 32, offset, length, 77, tensors, payload, file)


def submission(*images: Image, name: str = "r", **changes: Any) -> Submission:
    return Submission(name, u32(*range(10)), 5, images=images, **changes)


def test_small_images_and_files_come_in_the_submit(run: Run) -> None:
    async def story() -> None:
        async with attached(Engine) as (connection, engine, _):
            sent = (image(SMALL, SMALL), replace(image(offset=4, number=2), encoded=b"GIF"))
            connection.client.submit(["a"], submission(*sent))
            first, second = await engine.images()
            assert first == sent[0] and bytes(first.payload) == bytes(sent[0].payload)
            assert second == replace(sent[1], payload=b"")
            tensor, view = first.views()["image_grid_thw"]
            assert (tensor, len(view)) == (SMALL, 24)

    run(story())


def test_large_images_are_uploaded_once(run: Run, far: None) -> None:
    async def story() -> None:
        async with attached(Engine) as (connection, engine, server):
            pieces = counted(server)
            sent = image(LARGE, SMALL)
            connection.client.submit(["a"], submission(sent))
            connection.client.submit(["b"], submission(sent))
            connection.client.submit(["c"], submission(name="text"))
            assert (await engine.images()) == (), "who has no images does not wait for those who have"
            for _ in range(2):
                (got,) = await engine.images()
                assert bytes(got.payload) == bytes(sent.payload)
            assert len(pieces) == 7, "a question and six pieces of 5 MiB and a bit"
            connection.client.submit(["d"], submission(sent))
            await engine.images()
            assert len(pieces) == 8, "the question alone"

    run(story())


def counted(server: StepServer) -> list[int]:
    """The sizes of the pieces that are uploaded from now on."""
    receive, sizes = server._uploads.receive, list[int]()

    def note(request: messages.UploadRequest) -> int:
        sizes.append(len(request.data))
        return receive(request)

    server._uploads.receive = note  # type: ignore[method-assign]
    return sizes


def test_what_is_shared_is_not_sent(run: Run) -> None:
    async def story() -> None:
        async with attached(Engine) as (connection, engine, server):
            pieces = counted(server)
            sent = image(LARGE, SMALL, shared=True)
            expected = bytes(sent.payload)
            connection.client.submit(["a"], submission(sent))
            (got,) = await engine.images()
            assert not pieces and bytes(got.payload) == expected
            assert memoryview(got.payload).readonly

    run(story())


def test_memory_that_is_gone_is_tried_again_elsewhere(run: Run) -> None:
    async def story() -> None:
        async with attached(Engine) as (connection, _, server):
            sent = image(LARGE, shared=True)
            assert sent.memory is not None
            gone = replace(sent.memory, inode=sent.memory.inode + 1)
            connection.client.submit(["a"], submission(replace(sent, memory=gone)))
            _, _, finish, _ = await connection.deliveries.get()
            assert finish is not None
            assert (finish.reason, finish.retryable) == (FinishReason.ERROR, True)
            assert server.faults["missing_payload"] == 1

    run(story())


def test_an_abort_stops_what_waits_for_its_upload(run: Run, far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with attached(Engine) as (connection, engine, server):
            going_on, reached = asyncio.Event(), asyncio.Event()
            upload = connection.client._upload

            async def held(piece: messages.UploadRequest) -> messages.UploadReply:
                reached.set()
                await going_on.wait()
                return await upload(piece)

            monkeypatch.setattr(connection.client._uploader, "_ask", held)
            connection.client.submit(["a"], submission(image(LARGE)))
            connection.client.submit(["b", "c"], submission(image(LARGE, number=2), n=2, name="kept"))
            await reached.wait()
            connection.client.abort("a")
            connection.client.abort("b")
            assert connection.client.unconfirmed_aborts == 1, "the executor never heard of the first"
            going_on.set()
            streams, got = await engine.submitted.get()
            assert got.request_id == "kept"
            assert await engine.aborted.get() is streams[0]
            server.emit(1, [(each, (), Finish(FinishReason.STOP)) for each in streams])
            key, _, finish, _ = await connection.deliveries.get()
            assert key == "c" and finish is not None

    run(story())


def test_an_upload_that_fails_ends_its_streams_alone(run: Run, far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "UPLOAD_BUDGET", 1 << 20)

    async def story() -> None:
        async with attached(Engine) as (connection, engine, server):
            server._uploads = Uploads(1 << 20)
            connection.client.submit(["a", "b"], submission(image(LARGE), n=2))
            ends = [await connection.deliveries.get() for _ in range(2)]
            assert {key for key, *_ in ends} == {"a", "b"}
            assert all(finish is not None and finish.retryable for _, _, finish, _ in ends)
            connection.client.submit(["c"], submission(image(SMALL)))
            await engine.images()

    run(story())


def test_images_that_make_no_sense_are_rejected(run: Run) -> None:
    async def story() -> None:
        async with attached(Engine) as (connection, _, _server):
            bad = {
                "hash": replace(image(SMALL), hash=b"short"),
                "tokens": image(SMALL, offset=9),
                "neither": image(),
                "too few": replace(image(SMALL), payload=b"1"),
                "float8": replace(image(SMALL), tensors=(replace(SMALL, dtype="float8"),)),
            }
            for why, each in bad.items():
                connection.client.submit([why], submission(each))
                _, _, finish, _ = await connection.deliveries.get()
                assert finish is not None and finish.reason is FinishReason.REJECTED
                assert why in finish.error

    run(story())


def test_uploads_stay_while_they_are_wanted() -> None:
    now = [0.0]
    uploads = Uploads(100, lambda: now[0])
    for name in (b"a", b"b"):
        assert uploads.receive(messages.UploadRequest(name, 50)) == 0
        assert uploads.receive(messages.UploadRequest(name, 50, 0, bytes(20))) == 20
        assert uploads.receive(messages.UploadRequest(name, 50, 0, bytes(30))) == 20, "that piece is here"
    with pytest.raises(PayloadMissing):
        uploads.take(b"a")
    assert uploads.receive(messages.UploadRequest(b"a", 50, 20, b"x" * 30)) == 50
    assert bytes(uploads.take(b"a")) == bytes(20) + b"x" * 30
    with pytest.raises(NoRoom):
        uploads.receive(messages.UploadRequest(b"c", 1))
    now[0] = payloads.HOLD_SECONDS + 1
    held = uploads.take(b"a")
    assert uploads.receive(messages.UploadRequest(b"c", 50)) == 0, "in the place of the one nobody asked for"
    with pytest.raises(PayloadMissing):
        uploads.take(b"b")
    assert uploads.bytes == 100 and bytes(held[20:]) == b"x" * 30
    for bad in (
        messages.UploadRequest(b"", 5),
        messages.UploadRequest(b"d", 0),
        messages.UploadRequest(b"d", 101),
        messages.UploadRequest(b"a", 51),
        messages.UploadRequest(b"c", 50, 40, bytes(11)),
    ):
        with pytest.raises(ValueError):
            uploads.receive(bad)


def test_only_sealed_files_of_the_right_number_are_mapped() -> None:
    view, file = memory.share(100)
    view[:5] = b"hello"
    assert bytes(memory.read(file)[:5]) == b"hello"
    with pytest.raises(FileNotFoundError):
        memory.read(replace(file, size=101))
    with pytest.raises(OSError):
        memory.read(MemoryFile(file.pid, 1 << 20, file.inode, 100))
    fd = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 100)
    with pytest.raises(PermissionError):
        memory.read(MemoryFile(os.getpid(), fd, os.fstat(fd).st_ino, 100))
    os.close(fd)


def test_a_prompt_is_keyed_by_its_images_and_collapses() -> None:
    images = (image(SMALL, offset=1, length=9), image(SMALL, offset=12, length=3, number=2))
    token_ids = u32(5, *[77] * 9, 6, 7, *[77] * 3, 8)
    changed = memoryview(keyed(token_ids, images)).cast("I").tolist()
    one, two = (int.from_bytes(bytes([number]) * 4, "little") for number in (1, 2))
    assert changed == [5, *[one] * 9, 6, 7, *[two] * 3, 8]
    collapsed = unexpanded(Submission("r", token_ids, 1, images=images))
    assert collapsed.token_ids == u32(5, 77, 6, 7, 77, 8)
    assert [(each.offset, each.length, each.tensors) for each in collapsed.images] == [(1, 1, ()), (4, 1, ())]
    assert "images[1]" in problem_of((images[0], replace(images[1], offset=9)), 16), "they overlap"
    assert outgoing.upload_name(images[0]) != outgoing.upload_name(replace(images[0], tensors=()))
