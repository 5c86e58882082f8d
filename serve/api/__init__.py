"""Requests, answers and errors as they go over HTTP: their shapes, how they are read and how they are written."""
