"""The form that a runtime wants of the float graph."""
