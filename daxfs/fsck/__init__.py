"""The checker: finds everything that the format can get wrong, and repairs it.

Kernel counterpart: e2fsck, whose passes it takes over:

    superblock     pass 0: super block and its backup, journal, state word
    inodes         pass 1: inodes, block maps (blockmap), xattrs (xattrs); which blocks are used
    directories    pass 2: directory records
    connectivity   pass 3: every directory hangs below the root; the rest goes to lost+found
    links          pass 4: link counts, orphans
    bitmap         pass 5: the bitmap against the blocks in use, and the state word again

Works on the bytes of the image alone (ondisk, pmem, the journal's recovery).
"""
