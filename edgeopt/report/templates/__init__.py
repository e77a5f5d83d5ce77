"""The report's templates and its style."""
