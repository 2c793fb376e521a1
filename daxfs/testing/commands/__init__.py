"""The commands of ``scripts/crash-test``, one module each; see ``main``."""
