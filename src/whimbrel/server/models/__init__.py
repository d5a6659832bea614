"""`whimbrel models`: the configured embedder and reranker, served to other processes and hosts over the protocols of
Text Embeddings Inference and OpenAI."""
