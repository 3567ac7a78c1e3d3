# paper: top-1 82.2
_base_ = './t2t-vit-14_8xb64-310e_in1k.py'
model = dict(backbone=dict(token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
