# paper: top-1 81.8
_base_ = './pvt-m_8xb128-300e_in1k.py'
model = dict(backbone=dict(token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
