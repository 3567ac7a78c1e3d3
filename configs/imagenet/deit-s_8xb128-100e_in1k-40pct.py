# paper: top-1 71.6; it does not name the trunk
_base_ = './deit-s_8xb128-100e_in1k-50pct.py'
train_dataloader = dict(dataset=dict(fraction=0.4))
default_hooks = dict(ema=dict(momentum=0.0003))  # the fewer the steps, the more
