"""An executor inside TensorRT-LLM's own Python: serves its LLM API over the step stream.

Needs grpcio and tensorrt_llm and what that brings, nothing else. `api` holds every line that touches TensorRT-LLM.
"""
