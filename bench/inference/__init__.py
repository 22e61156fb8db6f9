"""Embedding rate of the model alone and of the whole path, beside sentence-transformers and the machine's GEMM rate."""
