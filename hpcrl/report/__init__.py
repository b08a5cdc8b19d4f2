"""What a user sees of a run: the HTML report, the TensorBoard files, the status. Reads the run folder, changes nothing."""
