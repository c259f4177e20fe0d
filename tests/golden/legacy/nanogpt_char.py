# a small model of Shakespeare's characters
# made for a quick look, on a laptop too

out_dir = 'out-shakespeare-char'
eval_interval = 250 # often, because it overfits
eval_iters = 200
log_interval = 10 # not every step

# overfitting is expected, so keep only what improves
always_save_checkpoint = False

wandb_log = False # or from the command line
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256 # characters seen at once

# a baby
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3 # small models bear more
max_iters = 5000
lr_decay_iters = 5000 # the same as max_iters
min_lr = 1e-4 # a tenth of the peak
beta2 = 0.99 # few tokens in a step, so a longer memory

warmup_iters = 100 # perhaps not needed

# without a GPU
# device = 'cpu'
# compile = False # no compiler needed
