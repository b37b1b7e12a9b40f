"""Parts of `scripts/install-device`; standard library only, since they run before anything is installed."""
