"""The filesystem proper: inodes, names, block maps, files (what ext4 is to fs/dax.c).

``super.FileSystem`` is what the shell uses; its docstring names the modules in reading order.
"""
