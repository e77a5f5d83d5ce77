"""What an app or a robot loads: the shipped part of a bundle, in the platform's own layout."""
