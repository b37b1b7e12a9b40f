"""Parts of `scripts/test-arm`: an Arm user land from Debian's packages, and what is tried in it."""
