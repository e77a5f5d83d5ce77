"""Qualcomm's Hexagon: context binaries, compiled from ONNX files."""
