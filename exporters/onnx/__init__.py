"""ONNX: explicitly quantized files."""
