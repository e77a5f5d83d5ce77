"""TensorRT: an ONNX file with what builds its engine on the device."""
