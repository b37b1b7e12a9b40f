"""Activations of fine-tuning on disk: room is taken at once, and nothing stays behind."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import resource
import signal
import subprocess
import sys

import numpy as np

from edge_client.contract.errors import SettingsError
from luigi_tasks.training.mapped_array import map_array


def _map_on_a_full_disk(folder):
    """In a process of its own: no file of it can grow over 1,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        map_array(folder, (10, 100))
    except SettingsError as e:
        return str(e)
    return "no error"


def test_full_disk_is_reported_before_activations_are_computed(tmp_path):
    """A page that finds no room when it is written would end the process without a word."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        told = pool.submit(_map_on_a_full_disk, tmp_path).result()
    assert "no room for 0 MB of activations" in told
    assert "free some space, or let [dataset] cache_dir name a folder" in told
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_no_activations(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from luigi_tasks.training.mapped_array import map_array\n"
        "acts = map_array(Path(sys.argv[1]), (10, 1000)); acts[:] = 1; acts.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_activations_are_mapped_from_disk_not_held_in_memory(tmp_path):
    acts = map_array(tmp_path, (3, 5, 7))
    assert isinstance(acts, np.memmap)
    assert (acts.shape, acts.dtype) == ((3, 5, 7), np.float16)
    acts[1] = 2.5
    assert float(acts.sum()) == 5 * 7 * 2.5
