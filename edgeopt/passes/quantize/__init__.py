"""Plan, calibrate, quantize."""
