"""What leaves a silo, and the record of it."""
