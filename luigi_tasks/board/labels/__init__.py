"""The grid of frames and doubtful labels, and who labels what."""
