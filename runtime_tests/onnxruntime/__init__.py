"""ONNX Runtime: run, inspect, prove ONNX files."""
