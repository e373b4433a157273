"""Everything between HTTP and tensors.

Torch-free half, which the api imports: settings, operations, wire, queue, registry, pictures, blobs, ledger, outbox.
Half with torch, imported by the worker process only: resident, engine, tasks.
"""
