"""What is wrong with a trained run, and which flag mends it."""
