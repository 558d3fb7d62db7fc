"""The engine vllm: sampling with vLLM, in this process or in one of its own."""
