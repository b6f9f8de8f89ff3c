"""The .gguf files of llama.cpp, Ollama and LM Studio."""
