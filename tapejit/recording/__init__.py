"""Recording plain Python and NumPy code on a tape."""
