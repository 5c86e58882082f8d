"""Parity with the released implementation: every number of a fixture folder, compared and printed."""
