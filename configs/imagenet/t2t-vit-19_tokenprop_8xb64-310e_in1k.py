# paper: top-1 82.8
_base_ = './t2t-vit-19_8xb64-310e_in1k.py'
model = dict(backbone=dict(token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
