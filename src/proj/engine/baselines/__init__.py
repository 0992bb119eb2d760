"""Standard learners that are compared with the net, on the same splits and columns."""
