"""TensorRT-LLM: its own gRPC front (native), OpenEngine, and the executor that serves the step stream inside it."""
