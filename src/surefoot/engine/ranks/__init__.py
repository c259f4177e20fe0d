"""One run in several processes: who they are, what each computes, and how they come to one answer.

`tree` and `team` know neither models nor files. `exchange` adds gradients up (DDP), `shards` also
splits what each device holds (FSDP2). `follow` is what the other ranks have in place of the files
that rank 0 alone writes.
"""
