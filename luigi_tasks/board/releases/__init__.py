"""What is shown of releases: figures of the gate, lineage, pairs."""
