"""TFLite files at work: in this process where it made them, in a child process where they were read."""
