"""Testing tools: crash states, mutants, damaged images, killed daemons, injected faults.

    outcome     what a part of the testing tells: figures and failures
    kill        daemons and clients killed under load (site, clients, filemodel, treemodel)
    commands    one module for each command of ``scripts/crash-test``

They test daxfs itself, and may be used to test programs that store through daxfs.
"""
