"""OpenEngine, which TensorRT-LLM and others serve: the gateway's side of it."""
