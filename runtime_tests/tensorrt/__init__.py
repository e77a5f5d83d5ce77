"""TensorRT: what its compilers say of a file."""
