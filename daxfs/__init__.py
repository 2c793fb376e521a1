"""daxfs: a FUSE filesystem that emulates Linux DAX over a memory-backed pmem image.

The layers, each of which imports only those below it:

    cli                    the commands
    fuse  fsck  inspect    the shell around pyfuse3; the checker; the reader of images
    mkfs  fs               formatting; inodes, names, block maps, files (what ext4 is to fs/dax.c)
    dax  journal  alloc    entries, faults, writeback; transactions; blocks
    ondisk                 the only place that knows bytes: dtypes, layout, checksums
    pmem                   the image: mmap, store / flush / fence

``errors``, ``units`` and ``trace`` serve all of them. tests/test_layers.py holds the rule.
"""

__version__ = "0.1.0"

import os

# numpy's BLAS starts a thread for each further processor, which spins for a while: daxfs has no
# use for them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
