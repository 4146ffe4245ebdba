"""qcow2 images: format, reader, writer.

One rule: what an image says is a claim. Nothing is allocated, read or believed before it is compared with a bound.
"""
