# paper: top-1 75.1; it does not name the trunk
_base_ = './deit-s_moto-tokenprop_8xb128-300e_in1k.py'
epochs = 100
train_dataloader = dict(dataset=dict(fraction=0.5))
param_scheduler = dict(epochs=epochs)
train_cfg = dict(max_epochs=epochs)
# DeiT's averages, over the same share of a training that has a sixth of the steps
default_hooks = dict(ema=dict(momentum=0.00024))
