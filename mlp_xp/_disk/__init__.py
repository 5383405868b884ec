"""What is written to a disk and read back: whole files and folders, and models, which run no code."""
