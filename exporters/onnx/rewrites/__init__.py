"""Forms that torch cannot express, as rewrites of an ONNX graph (onnx_ir), one a file."""
