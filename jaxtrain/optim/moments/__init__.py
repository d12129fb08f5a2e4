"""How 8-bit optimizers keep their moments, one way a file."""
