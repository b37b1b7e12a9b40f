"""What changes: looks at the bucket, and the streams that tell open pages."""
