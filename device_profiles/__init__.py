"""Device profiles and rule sets, one TOML each."""

if __name__ != "edgeopt.device_profiles":
    # A second copy of every class would split isinstance checks and registries.
    raise ImportError("import edgeopt.device_profiles, not device_profiles")
