"""Checkpoints: one moment of a run, committed as a whole, in tensors and JSON alone.

    checkpoints/step-00000100/
        manifest.json            step, position in the data, config; for each part what it holds, its size and hash
        part-00000.safetensors   what rank 0 answered for: some elements of some parameters, with the optimiser's state

Every rank writes one part, behind training's back, flushed to disk; rank 0 then commits: it writes the manifest and
renames the folder (an object store has no folders: there the manifest comes last). So a kill at any moment leaves
whole checkpoints, and perhaps a hidden folder that the next save removes. Any mesh, ZeRO stage or number of ranks reads
what any other wrote, and only the elements that it needs. A broken one is named and passed over for the one before it.

    storage    where they lie: a folder, or an object store
    manifest   what a checkpoint says of itself, and whether it is whole
    part       one file of tensors, written and read
    saver      saving while training goes on
    reading    the newest whole one, and its tensors by element
    changes    what a resumed run may change
"""
