import time

out_dir = 'out-' + str(time.time())
# 12 sequences, 1024 tokens each, accumulated
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 600000
lr_decay_iters = 600000
eval_interval = 1000
weight_decay = 1e-1
grad_clip = 1.0
decay_lr = True
bias = False
device = 'cuda'
dtype = 'bfloat16'
compile = True
seed = 1337
