"""What `scripts/fuzz.py` damages, a file a kind of input. See there."""
