"""What a user sees of a run: HTML report, TensorBoard files, status. Reads the run folder and changes nothing."""
