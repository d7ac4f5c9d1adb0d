"""Where the real package has these too."""

from tensorrt_llm.params import LoRARequest, RequestError

__all__ = ["LoRARequest", "RequestError"]
