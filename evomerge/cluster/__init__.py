"""Workers on many devices and machines: they are given work, one item after the other, and may die at any time."""
