"""Labelled clips of audio: readers of folders, tables and public data sets, and their division into splits."""

from .clips import AUDIO_SUFFIXES, Clip, Dataset
from .datasets import dataset_names, read_public_dataset
from .readers import read_csv, read_dataset, read_folders, read_json
from .splits import few_shot, folds, hold_out

__all__ = [
    "AUDIO_SUFFIXES",
    "Clip",
    "Dataset",
    "dataset_names",
    "few_shot",
    "folds",
    "hold_out",
    "read_csv",
    "read_dataset",
    "read_folders",
    "read_json",
    "read_public_dataset",
]
