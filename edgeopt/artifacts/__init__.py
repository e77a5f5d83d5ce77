"""What a build leaves: artifacts, their interface, the bundle around them."""
