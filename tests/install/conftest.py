import sys

# The installer runs with the system's Python of Bookworm (3.11) and Trixie (3.13).
collect_ignore_glob = ["*"] if sys.version_info < (3, 11) else []
