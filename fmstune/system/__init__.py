"""The machine: memory, disks, devices, compiler, file locks; independent of models."""
