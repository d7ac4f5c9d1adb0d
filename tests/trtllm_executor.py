"""Our executor for TensorRT-LLM as a process, over the stand-in for tensorrt_llm."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.processes import ROOT, Process, environment

MODEL = ROOT / "engine_adapters/simulator/model"
STANDIN = ROOT / "tests/trtllm_standin"
TRANSCEIVER = ("--cache_transceiver_config", '{"backend": "UCX"}')
OLD, NEW = "1.2.0", "1.4.0rc1"


class Executor(Process):
    """`python -m engine_adapters.trtllm.executor`, listening. `calls()` is what its engine was asked so far."""

    def __init__(
        self,
        *arguments: str,
        version: str = NEW,
        step_ms: float = 1,
        calls: Path | None = None,
        ready: bool = True,
        model: Path = MODEL,
        images: bool = False,
    ) -> None:
        self._calls = calls
        settings = environment(
            PYTHONPATH=str(STANDIN),
            STANDIN_VERSION=version,
            STANDIN_STEP_MS=str(step_ms),
            STANDIN_IMAGES="1" if images else None,
            STANDIN_CALLS=str(calls) if calls else None,
        )
        super().__init__([sys.executable, "-m", "engine_adapters.trtllm.executor", str(model), *arguments], settings)
        if not ready:
            return
        try:
            self.address: str = json.loads(self.line(r"^\{.*\}$", "stdout")[0])["address"]
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    @property
    def url(self) -> str:
        return f"step://{self.address}"

    def calls(self) -> list[dict[str, Any]]:
        assert self._calls is not None
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []
