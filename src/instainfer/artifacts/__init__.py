"""What nodes need to run a function, by the digest of its content: packages, packed environments, snapshots.

Nothing here trusts where content comes from: a file of the cache is what its name says, whoever sent it.
"""
