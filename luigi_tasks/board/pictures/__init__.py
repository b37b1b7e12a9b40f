"""Decoding and classifying of pictures, in a confined child."""
