"""What is shown of a device."""
