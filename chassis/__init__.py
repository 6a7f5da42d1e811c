"""What every stage stands on: one pass over a batch, and the parts that make it safe."""
