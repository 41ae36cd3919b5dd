"""What the machine has: memory, disks, devices, a compiler, locks of files; nothing here knows of models."""
