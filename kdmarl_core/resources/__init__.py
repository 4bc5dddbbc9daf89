"""What a student costs."""
