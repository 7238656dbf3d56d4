"""A Core ML package of this project as the single delegate of an ExecuTorch program."""
