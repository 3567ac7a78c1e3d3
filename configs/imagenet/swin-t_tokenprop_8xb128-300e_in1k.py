# paper: top-1 82.3
_base_ = './swin-t_8xb128-300e_in1k.py'
model = dict(backbone=dict(token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
