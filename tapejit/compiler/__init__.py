"""From a recorded tape back to loops, and from loops to machine code."""
