"""Core ML: ML Programs in .mlpackage folders, read, run and audited without Core ML."""
