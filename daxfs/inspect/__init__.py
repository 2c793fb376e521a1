"""The reader of images: what can be said about one without mounting or changing it.

Works on the bytes of the image alone (ondisk, pmem), and says of a damaged image what is left.
"""
