"""The forms in which a model is named, in words: importing this takes no torch."""

FORMS = "zoo:NAME, FILE.py:FACTORY, hf:DIR, timm:NAME@WEIGHTS or FILE.pt2"
