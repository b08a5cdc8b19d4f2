"""The peers hpcrl is measured against: programs of their own that print one JSON record as their last line."""
