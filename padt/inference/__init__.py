"""Requests and answers: generation, reading an answer, decoding its objects, streams, calibrated scores."""
