"""One registry for everything that has a name: what ships with edgeopt, and what plug-ins add."""
