"""Where the real package has these too."""

from tensorrt_llm.params import (
    DisaggregatedParams,
    GuidedDecodingParams,
    KvCacheRetentionConfig,
    RequestError,
    SamplingParams,
    SchedulingParams,
)

__all__ = [
    "DisaggregatedParams",
    "GuidedDecodingParams",
    "KvCacheRetentionConfig",
    "RequestError",
    "SamplingParams",
    "SchedulingParams",
]
