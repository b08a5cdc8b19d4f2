"""Typed faces of the kernels, one file for each idea: arrays in, arrays out, no state."""
