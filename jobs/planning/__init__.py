"""What a training will need, before anything is paid for: sizes, memory, disk, time."""
