"""Runs of the pipeline: started, followed, ended; and the steps that luigid knows."""
