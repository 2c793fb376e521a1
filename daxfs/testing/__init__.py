"""Testing tools: crash states, mutants, hostile images, killed daemons, faults, bad media.

    outcome     what a part of the testing tells: figures and failures
    explorer    crash states (recorder, states, oracles, stage, sandbox, walker, result, stateid,
                usage)
    workloads   what is crashed (trees, steps)
    replay      one crash state again
    hunt        mutants, and who kills them (mutants, mutated, sites)
    fuzz        hostile images (specimens, mutations, hostile, hostile_use, hostile_walk,
                hostile_mounts, guided)
    kill        daemons and clients killed under load (site, clients, filemodel, treemodel)
    faults      operations that run out of something
    poison      lines of metadata that become unreadable or garbage
    commands    one module for each command of ``scripts/crash-test``

They test daxfs itself, and may be used to test programs that store through daxfs: see
docs/RELIABILITY.md.
"""
