"""The form that a runtime wants of a quantized graph."""
