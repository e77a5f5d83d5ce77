"""From a module to a captured program."""
