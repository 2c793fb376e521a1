"""The shell around pyfuse3 and trio: what turns a FileSystem into a mount.

    session            the life of a mount; daemon: in the background; logs
    mounting           attaching and detaching; preflight: what that needs; mountinfo, options
    operations         the request handlers; errmap: exceptions become errnos
    poll               how requests are waited for; zeroes: how holes are answered
    evictor, ledger    hole pages are taken back from the kernel
    lowlevel           the companion extension (_lowlevel.c), and the only way to pyfuse3
    control            the control socket; control_server: the daemon's side of it

Everything below this layer is synchronous; only this layer imports pyfuse3 and trio.
"""
