"""Exporters, a folder a format."""

if __name__ != "edgeopt.exporters":
    # A second copy of every class would split isinstance checks and registries.
    raise ImportError("import edgeopt.exporters, not exporters")
