# paper: top-1 78.9; it does not give SGD's learning rate and decay, these are ours
_base_ = './deit-s_sgd_8xb128-300e_in1k.py'
model = dict(backbone=dict(token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
