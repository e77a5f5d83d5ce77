"""States, passes, the pipeline that runs them."""
