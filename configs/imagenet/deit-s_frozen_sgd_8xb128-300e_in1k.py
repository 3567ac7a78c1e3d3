# paper: top-1 76.0; it does not give SGD's learning rate and decay, these are ours
_base_ = './deit-s_frozen_8xb128-300e_in1k.py'
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=1.0, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(min_lr=1e-3)
