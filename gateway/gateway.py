"""What the process has one of: everything that answering a request needs.

Threads: frozen, and what it holds guards itself; `loops` grows while the HTTP loops start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine_adapters.base import EngineInfo
from gateway.config import Config
from gateway.engines import EngineThread
from gateway.errors import ModelNotFound
from gateway.http_loop import HttpLoop
from gateway.limits import Admission, ByteBudget, Keys
from gateway.metrics import Registry
from gateway.model import Model
from gateway.pools import Pool
from gateway.routing import Router
from gateway.schemas import Validators
from gateway.threads import Supervisor
from gateway.tokenizer import Encoder

if TYPE_CHECKING:  # numpy and Pillow are imported only where a model has images
    from gateway.multimodal.vision import Vision


@dataclass(frozen=True, slots=True)
class Gateway:
    """`encoders` are by the name of a model, `adapters` LoRA adapters by theirs, `aliases` either by other names.
    `visions` are those of the models that take images, and `vision` is the pool where they work."""

    config: Config
    models: dict[str, Model]
    adapters: dict[str, Model]
    aliases: dict[str, Model]
    encoders: dict[str, Encoder]
    router: Router
    engine: EngineThread
    tokenize: Pool
    vision: Pool
    visions: "Mapping[str, Vision]"
    keys: Keys
    admission: Admission
    body_memory: ByteBudget
    validators: Validators
    registry: Registry
    supervisor: Supervisor
    loops: list[HttpLoop] = field(default_factory=list)

    def model(self, name: str) -> Model:
        """Raises ModelNotFound."""
        # Not by `get`: on 3.13t that takes 20 µs for what another thread made (docs/performance.md).
        for models in (self.models, self.adapters, self.aliases):
            if name in models:
                return models[name]
        served = ", ".join(map(repr, (*self.models, *self.adapters, *self.aliases)))
        raise ModelNotFound(f"the model {name!r} is not served here; there is {served}", param="model")

    @property
    def pools(self) -> tuple[Pool, ...]:
        return self.tokenize, self.vision

    def infos(self, model: Model) -> list[EngineInfo]:
        """What is known of the engines that serve a model."""
        states = self.router.snapshot().values()
        return [state.info for state in states if state.model == model.served_by and state.info is not None]
