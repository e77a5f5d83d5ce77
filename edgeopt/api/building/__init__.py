"""The main job, a file a step."""
