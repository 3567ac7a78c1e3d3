# paper: top-1 80.7
_base_ = './deit-s_8xb128-300e_in1k.py'
model = dict(backbone=dict(token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
