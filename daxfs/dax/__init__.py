"""The DAX layer: entries, faults, reads, writes and writeback; a user-space fs/dax.c.

It knows no filesystem: it asks one through iomap.IomapOps. Files in reading order: entry, mapping
(the index), zero_page, iomap, fault, rw (class Dax: what filesystems and the shell call),
writeback.
"""
