# paper: top-1 46.5; it does not name the trunk
_base_ = './deit-s_moto-tokenprop_8xb128-100e_in1k-50pct.py'
train_dataloader = dict(dataset=dict(fraction=0.1))
default_hooks = dict(ema=dict(momentum=0.0012))  # the fewer the steps, the more
