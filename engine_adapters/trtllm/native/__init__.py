"""The wire that `trtllm-serve --grpc` speaks: our client of it, and a server for engines that are not TensorRT-LLM."""
