"""The peers hpcrl is measured against.  Each file is a program of its own that prints one JSON record as its last line."""
