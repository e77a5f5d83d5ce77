"""Runs exported files in real runtimes: runners, inspectors and proofs, accuracy, latency."""

if __name__ != "edgeopt.runtime_tests":
    # A second copy of every class would split isinstance checks and registries.
    raise ImportError("import edgeopt.runtime_tests, not runtime_tests")
