"""What `smop export` writes."""

FORMATS = {
    "vllm": "embeddings, prompts and router for a client that sends vLLM prompt_embeds",
    "llama.cpp": "the same directory; llama.cpp takes embeddings in place of tokens",
    "onnx": "router, prompts and backbone as graphs, compared with the model",
    "lm-eval": "the task's YAML for lm-evaluation-harness, and its rows",
}
