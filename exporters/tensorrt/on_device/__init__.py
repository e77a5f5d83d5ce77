"""Scripts that run on the device; each stands alone, on the standard library of Python 3.8."""
