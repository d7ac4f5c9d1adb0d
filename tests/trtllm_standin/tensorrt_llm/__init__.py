"""A stand-in for TensorRT-LLM, written from its documented LLM API: no GPU, an engine that repeats its prompt.

It imitates what is odd about the real one: results that are cumulative and the same object at every step, a response
for each sequence, differences that are wrong when there are several, an end that is told only of the last of them, an
end-of-sequence id that stays, stop ids that do not, queues for one reader, errors that are raised or stored.

    STANDIN_VERSION    1.2.0 (the default), 1.4.0rc1, or 0.20.0, which is too old
    STANDIN_STEP_MS    how long a step takes
    STANDIN_IMAGES     1: the model takes images
    STANDIN_CALLS      a file that gets what each generate_async was given, as a line of JSON

A request's cache salt may tell it what to do: "fail:2" fails after two tokens, "die:2" takes the engine along,
"refuse" is refused when it reaches the engine.
"""

from tensorrt_llm.params import VERSION, DisaggregatedParams, SamplingParams
from tensorrt_llm.standin_llm import LLM

__version__ = VERSION
__all__ = ["LLM", "DisaggregatedParams", "SamplingParams", "__version__"]
