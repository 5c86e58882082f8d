"""Models in and out of folders: the front door for every layout, adapters, exports."""
