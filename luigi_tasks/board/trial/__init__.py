"""Pictures that people try."""
