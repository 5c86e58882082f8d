"""The HTTP side: a Serve deployment that checks, decodes, asks the engine and writes answers; who is let in."""
