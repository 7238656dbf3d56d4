"""A reference interpreter of saved Core ML ML Programs, for machines without Core ML.

It reads the package itself (protobuf and weight file), so it sees what a device would load and not what a converter meant.
"""
