"""A small classifier that tests train, and what its trainings leave."""

import json

import torch

from conftest import ROOT

CONFIG = ROOT / 'tests' / 'configs' / 'classifier_tiny.py'
TRAIN, TEST = ROOT / 'tools' / 'train_classifier.py', ROOT / 'tools' / 'test_classifier.py'


def results(work_dir) -> dict:
    return json.loads((work_dir / 'results.json').read_text())


def files(folder) -> dict[str, bytes]:
    """Name -> content of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def weights(path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']
