"""The device: decodes, verifies, learns. Needs ONNX Runtime, NumPy and tokenizers, nothing else."""
